"""Linear datamodeling scores: do sums of influence scores rank the effects of training subsets?

A subset of the train set is trained on and what came of it measured; its predicted effect is the
sum of its examples' scores. The linear datamodeling score (LDS) is Spearman's rank correlation of
the two over random subsets (Park et al., 2023, TRAK, section 3, after Ilyas et al., 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biasdiff.functional.resampling import centred_interval, draws
from biasdiff.functional.statistics import RESAMPLES, Floats

Members = NDArray[np.bool_]
"""[s, n]: which of n examples are in each of s subsets."""
FEWEST = 3
"""Distinct observations below which a correlation says nothing: two always lie on a line."""
FEWEST_TO_RESAMPLE = 5
"""Observations, or clusters, below which there are too few different resamples for an interval."""


@dataclass(frozen=True)
class Correlation:
    """A correlation and its bootstrap replicates.

    Attributes:
        value: Of the observations; NaN where one side does not vary.
        replicates: Of each resample, [r].
    """

    value: float
    replicates: Floats

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `centred_interval`, within [-1, 1]; NaN where there is none."""
        return centred_interval(self.replicates, self.value, low=-1.0, high=1.0)


def random_halves(size: int, count: int, *, seed: int) -> Members:
    """Draw random subsets of ⌊size / 2⌋ of ``size`` examples, each without replacement.

    Subset k depends on ``size``, ``seed`` and k alone, so that asking for more keeps the first.

    Returns:
        [count, size].

    Raises:
        ValueError: If ``size`` is below 2.
    """
    if size < 2:
        raise ValueError(f"size must be at least 2, got {size}: there is nothing to halve.")
    members = np.zeros((count, size), dtype=np.bool_)
    for number, row in enumerate(members):
        row[np.random.default_rng([seed, size, number]).permutation(size)[: size // 2]] = True
    return members


def predicted_sums(members: Members, scores: Floats) -> Floats:
    """Return Σ_{i in S} score_i for every subset S, [s] or [s, m].

    Args:
        members: [s, n].
        scores: [n], or [n, m] towards m targets.
    """
    return np.asarray(members.astype(np.float64) @ scores)


def resample_counts(
    size: int,
    *,
    clusters: Sequence[str] | None = None,
    key: Sequence[int] = (),
    resamples: int = RESAMPLES,
) -> Floats:
    """Return how often each observation is in each bootstrap resample, [r, n].

    Args:
        size: Observations, n.
        clusters: Name of each one's cluster, [n]; whole clusters are drawn.
        key: See `draws`: equal keys and sizes give equal resamples.
        resamples: r; none are drawn below `FEWEST_TO_RESAMPLE` clusters.
    """
    names = clusters if clusters is not None else [str(i) for i in range(size)]
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    owners = np.array([number[name] for name in names], dtype=np.int64)
    if len(number) < FEWEST_TO_RESAMPLE:
        return np.empty((0, size))
    drawn = draws(len(number), key=key, count=resamples)
    flat = drawn + len(number) * np.arange(resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=resamples * len(number))
    return counts.reshape(resamples, len(number))[:, owners].astype(np.float64)


def resampled_ranks(values: Floats, counts: Floats) -> Floats:
    """Return the rank of each value within each resample, equal values sharing their mean rank.

    rank_i = ½ + Σ_j c_j ([x_j < x_i] + ½ [x_j = x_i]), with c_j the copies of j, so that a resample
    is ranked without being sorted. Of a value that is not in it, the rank means nothing.

    Args:
        values: [n].
        counts: [r, n].

    Returns:
        [r, n].
    """
    below = np.less.outer(values, values) + 0.5 * np.equal.outer(values, values)
    return np.asarray(counts @ below + 0.5)


def correlation(x: Floats, y: Floats, counts: Floats) -> Correlation:
    """Return Pearson's correlation of x and y, [n] each, and of every resample.

    Raises:
        ValueError: If lengths differ or a value is not finite.
    """
    whole = _with_sample(x, y, counts)
    return _correlation(_pearson(np.tile(x, (len(whole), 1)), np.tile(y, (len(whole), 1)), whole))


def rank_correlation(x: Floats, y: Floats, counts: Floats) -> Correlation:
    """Return Spearman's correlation of x and y, [n] each, and of every resample.

    Raises:
        ValueError: As `correlation`.
    """
    return _correlation(_spearman(x, y, _with_sample(x, y, counts)))


def partial_rank_correlation(x: Floats, y: Floats, given: Floats, counts: Floats) -> Correlation:
    """Return Spearman's correlation of x and y with ``given`` held constant, [n] each.

    (ρ_xy - ρ_xz ρ_yz) / √((1 - ρ_xz²) (1 - ρ_yz²)) for z = ``given``: what of x's ranking of y is
    left when both rankings' linear dependence on that of z is taken out; NaN where nothing is left.

    Raises:
        ValueError: As `correlation`.
    """
    whole = _with_sample(x, y, counts)
    _with_sample(x, given, counts)
    xy, xz, yz = (_spearman(a, b, whole) for a, b in ((x, y), (x, given), (y, given)))
    left = (1 - np.square(xz)) * (1 - np.square(yz))
    known = left > 1e-12
    with np.errstate(invalid="ignore", divide="ignore"):
        return _correlation(np.where(known, (xy - xz * yz) / np.sqrt(np.abs(left)), np.nan))


def datamodeling_score(predicted: Floats, measured: Floats, counts: Floats) -> Correlation:
    """Return the LDS: Spearman's correlation over subsets, averaged over targets.

    A target that one of the sides does not vary for, over all subsets, is left out; where it does
    not vary in a resample, it is left out of that resample.

    Args:
        predicted: [s], or [s, m] of m targets.
        measured: Likewise.
        counts: Resamples of the subsets, [r, s].

    Raises:
        ValueError: As `correlation`.
    """
    if predicted.shape != measured.shape:
        raise ValueError(
            f"predicted is {list(predicted.shape)} and measured {list(measured.shape)}: pass one "
            "value of each for every subset and target."
        )
    columns = zip(np.atleast_2d(predicted.T), np.atleast_2d(measured.T), strict=True)
    found = np.stack([_spearman(x, y, _with_sample(x, y, counts)) for x, y in columns])
    found = found[~np.isnan(found[:, 0])]
    known = ~np.isnan(found)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _correlation(np.where(known, found, 0).sum(0) / known.sum(0))


def attainable_correlation(reliability: float, repeats: int) -> float:
    """Return the correlation that a perfect prediction would reach with noisy measurements.

    √(k r / (1 + (k - 1) r)): the square root of the reliability of the mean of k repeated
    measurements, by Spearman and Brown's formula. Exact for Pearson's correlation of a sum of
    effect and independent noise; a guide for rank correlations.

    Args:
        reliability: r, the correlation of two single measurements; 0 is returned below 0.
        repeats: k, at least 1.

    Raises:
        ValueError: If ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}: nothing was measured.")
    if math.isnan(reliability):
        return math.nan
    bounded = max(reliability, 0.0)
    return math.sqrt(repeats * bounded / (1 + (repeats - 1) * bounded))


def _with_sample(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Return the counts with those of the sample itself before them, [1 + r, n]."""
    if not x.shape == y.shape == (counts.shape[1],):
        raise ValueError(
            f"x is {list(x.shape)}, y {list(y.shape)} and counts {list(counts.shape)}: pass n "
            "values of each and counts of n columns."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x or y holds NaN or infinity: leave such observations out.")
    return np.vstack([np.ones((1, len(x))), counts])


def _correlation(found: Floats) -> Correlation:
    return Correlation(float(found[0]), found[1:])


def _spearman(x: Floats, y: Floats, counts: Floats) -> Floats:
    return _pearson(resampled_ranks(x, counts), resampled_ranks(y, counts), counts)


def _pearson(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Return the correlation in each row, [r], of [r, n] values that occur [r, n] times."""
    present = counts > 0
    total = counts.sum(1)
    varies = present.sum(1) >= FEWEST
    centred = []
    for side in (x, y):
        highest = np.max(side, axis=1, where=present, initial=-np.inf)
        lowest = np.min(side, axis=1, where=present, initial=np.inf)
        varies &= highest > lowest
        centred.append(side - ((counts * side).sum(1) / total)[:, None])
    a, b = centred
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (counts * a * b).sum(1) / np.sqrt((counts * a * a).sum(1) * (counts * b * b).sum(1))
    return np.where(varies, np.clip(found, -1.0, 1.0), np.nan)
