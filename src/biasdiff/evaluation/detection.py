"""How well scores find the biased train examples, where the truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from biasdiff.functional.statistics import auroc, proportion_interval
from biasdiff.results import Metric

RESAMPLES = 1000
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
    draw = np.random.default_rng(seed)
    resamples = [draw.integers(0, len(scores), len(scores)) for _ in range(RESAMPLES)]
    for name, function in (("auroc", auroc), ("auprc", average_precision_score)):
        metrics[name] = _area(function, scores, truth, resamples)
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
    function: Any,
    scores: NDArray[np.float64],
    truth: NDArray[np.int64],
    resamples: list[NDArray[np.int64]],
) -> Metric:
    if truth.min() == truth.max():
        return Metric(math.nan, len(truth), "higher_is_better")
    values = np.array(
        [function(truth[r], scores[r]) for r in resamples if truth[r].min() < truth[r].max()]
    )
    low, high = np.quantile(values, [0.025, 0.975])
    return Metric(
        float(function(truth, scores)),
        len(truth),
        "higher_is_better",
        float(values.std(ddof=1)),
        (float(low), float(high)),
    )
