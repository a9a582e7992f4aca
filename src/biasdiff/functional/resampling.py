"""Bootstrap of figures that are not means: draws, intervals and p from their replicates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from biasdiff.functional.statistics import RESAMPLES, Floats

Draws = NDArray[np.int64]


def draws(size: int, *, key: Sequence[int] = (), count: int = RESAMPLES) -> Draws:
    """Return the places of ``count`` samples of ``size`` out of ``size`` with replacement.

    Equal keys and sizes give equal draws, so that what is measured twice on the same examples is
    resampled alike.

    Args:
        size: Examples.
        key: Non-negative numbers that name them.
        count: Resamples.

    Returns:
        [count, size].
    """
    return np.random.default_rng([size, *key]).integers(size, size=(count, size))


def centred_interval(
    replicates: Floats, value: float, *, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """Return the 95 % percentile interval of bootstrap replicates moved by their bias.

    (q_0.025 - b, q_0.975 - b) with b = mean(replicates) - value, cut to [low, high]. An absolute
    value or a minimum of a resample lies on one side of that of the sample on average; without the
    move the interval may not even hold the figure. For a figure that is linear in the examples
    b is 0 up to chance and this is the plain percentile interval.

    Args:
        replicates: [r], of the figure; NaN (a resample without spread) counts for nothing.
        value: The figure.
        low: Least value that the figure can have.
        high: Greatest value that the figure can have.

    Returns:
        NaN twice where no replicate is a number.
    """
    known = replicates[~np.isnan(replicates)]
    if not len(known) or math.isnan(value):
        return (math.nan, math.nan)
    moved = np.quantile(known, [0.025, 0.975]) - (known.mean() - value)
    return (float(np.clip(moved[0], low, high)), float(np.clip(moved[1], low, high)))


def spread(replicates: Floats) -> float:
    """Return the standard deviation of the replicates, the bootstrap's standard error; NaN if none.

    Args:
        replicates: [r]; NaN counts for nothing.
    """
    known = replicates[~np.isnan(replicates)]
    return float(known.std(ddof=1)) if len(known) > 1 else math.nan


def bootstrap_p(replicates: Floats, value: float) -> float:
    """Return the two-sided p of a figure of zero, from replicates moved by their bias.

    2 min(1 + #{r <= 0}, 1 + #{r >= 0}) / (1 + R), at most 1, over the replicates moved as in
    `centred_interval`; that interval holds 0 where p > 0.05, up to the rounding of quantiles.

    Args:
        replicates: [r]; NaN counts for nothing.
        value: The figure, usually a difference.
    """
    known = replicates[~np.isnan(replicates)]
    if not len(known) or math.isnan(value):
        return math.nan
    moved = known - (known.mean() - value)
    tail = 1 + min(int((moved <= 0).sum()), int((moved >= 0).sum()))
    return min(1.0, 2 * tail / (1 + len(known)))
