"""How well scores find the biased train examples, where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from biasdiff.evaluation.detection_controls import Floats, Ints, resampled_auprc, resampled_auroc
from biasdiff.functional.statistics import proportion_interval
from biasdiff.results import Metric

RESAMPLES = 1000
CELLS = 1 << 21
"""Resamples x examples that are held at once."""
CURVE_FRACTIONS = tuple(round(0.01 * k, 2) for k in (1, *range(2, 101, 2)))


def detection_metrics(
    scores: NDArray[np.float64], truth: NDArray[np.int64], *, fraction: float, seed: int = 0
) -> dict[str, Metric]:
    """Return coverage and precision at a selected fraction, AUROC and AUPRC.

    Args:
        scores: [n], higher = more suspect.
        truth: [n], 1 for a biased example.
        fraction: Share that is selected, highest scores first, ties to the earlier row.
        seed: Of the bootstrap over examples.

    Returns:
        ``coverage``: percentage of biased examples that are selected; ``precision``: percentage of
        selected examples that are biased; ``auroc`` and ``auprc`` (average precision), in [0, 1].
    """
    metrics = selection_metrics(scores, truth, fraction=fraction)
    for name, function in (("auroc", resampled_auroc), ("auprc", resampled_auprc)):
        metrics[name] = _area(function, scores, truth, seed)
    return metrics


def selection_metrics(
    scores: NDArray[np.float64], truth: NDArray[np.int64], *, fraction: float
) -> dict[str, Metric]:
    """Return coverage and precision as `detection_metrics` does, without the areas."""
    top = np.argsort(-scores, kind="stable")[: max(1, round(fraction * len(scores)))]
    hits, biased = int(truth[top].sum()), int(truth.sum())
    return {"coverage": _share(hits, biased), "precision": _share(hits, len(top))}


def detection_curve(
    scores: NDArray[np.float64], truth: NDArray[np.int64]
) -> dict[str, list[float]]:
    """Return coverage and precision (percent) at every one of `CURVE_FRACTIONS`."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(truth[order])
    counts = [max(1, round(fraction * len(scores))) for fraction in CURVE_FRACTIONS]
    total = max(int(truth.sum()), 1)
    return {
        "fraction": list(CURVE_FRACTIONS),
        "coverage": [100.0 * float(found[k - 1]) / total for k in counts],
        "precision": [100.0 * float(found[k - 1]) / k for k in counts],
    }


def _share(hits: int, n: int) -> Metric:
    low, high = proportion_interval(hits, n)
    value = 100 * hits / n if n else math.nan
    return Metric(value, n, "higher_is_better", interval=(100 * low, 100 * high))


def _area(
    function: Callable[[Floats, Ints, Ints], Floats], scores: Floats, truth: Ints, seed: int
) -> Metric:
    n = len(scores)
    value = float(function(scores, truth, np.ones((1, n), dtype=np.int64))[0])
    if math.isnan(value):
        return Metric(value, n, "higher_is_better")
    draw = np.random.default_rng(seed)
    block = max(1, CELLS // n)
    parts = []
    for start in range(0, RESAMPLES, block):
        rows = [draw.integers(0, n, n) for _ in range(min(block, RESAMPLES - start))]
        counts = np.stack([np.bincount(row, minlength=n) for row in rows]).astype(np.int64)
        parts.append(function(scores, truth, counts))
    values = np.concatenate(parts)
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, [0.025, 0.975])
    return Metric(
        value, n, "higher_is_better", float(values.std(ddof=1)), (float(low), float(high))
    )
