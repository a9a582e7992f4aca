"""Paired differences between two models on the same examples."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from biasdiff.errors import DataError
from biasdiff.functional.statistics import bootstrap_interval, standard_error
from biasdiff.results import Metric


def compare_pairs(after: pd.DataFrame, before: pd.DataFrame) -> dict[str, Metric]:
    """Return after - before of margin, margin per token and preference, with paired intervals.

    Args:
        after: Frame of `score_pairs` of one model.
        before: Frame of the other, same pairs in the same order.

    Raises:
        DataError: If the frames are not of the same pairs.
    """
    _require_same(after, before)
    differences = {
        name: (after[name] - before[name]).to_numpy(dtype=np.float64)
        for name in ("margin", "margin_per_token")
    }
    preferred = [
        100.0 * (frame["margin"] > 0).to_numpy(dtype=np.float64) for frame in (after, before)
    ]
    differences["metric"] = preferred[0] - preferred[1]
    return {name: _mean(values) for name, values in differences.items()}


def compare_perplexity(after: pd.DataFrame, before: pd.DataFrame) -> Metric:
    """Return the ratio of perplexities, after / before, with a paired bootstrap interval.

    Raises:
        DataError: If the frames are not of the same texts.
    """
    _require_same(after, before)
    change = (after["negative_log_likelihood"] - before["negative_log_likelihood"]).to_numpy(
        dtype=np.float64
    )
    tokens = after["tokens"].to_numpy(dtype=np.float64)
    low, high = bootstrap_interval(change, tokens)
    with np.errstate(over="ignore"):
        value, low, high = np.exp([change.sum() / tokens.sum(), low, high]).tolist()
    return Metric(value, len(change), "lower_is_better", interval=(low, high))


def excludes_zero(metric: Metric) -> bool:
    """Return whether the 95 % interval of a difference lies on one side of zero."""
    if metric.interval is None or not all(map(math.isfinite, metric.interval)):
        return False
    low, high = metric.interval
    return low > 0 or high < 0


def _mean(values: np.typing.NDArray[np.float64]) -> Metric:
    return Metric(
        float(values.mean()),
        len(values),
        "none",
        standard_error(values),
        bootstrap_interval(values),
    )


def _require_same(after: pd.DataFrame, before: pd.DataFrame) -> None:
    if len(after) != len(before) or not (after["row"].to_numpy() == before["row"].to_numpy()).all():
        raise DataError(
            f"the two results hold {len(after)} and {len(before)} examples, or other rows",
            expected="scores of the same examples",
            remedy="evaluate both models on the same files",
        )
