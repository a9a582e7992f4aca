"""Detection with length held fixed, and its figures over mixtures that were drawn anew.

Where biased examples are shorter than the others, whatever falls with length finds them. And a
figure of one mixture is that of one draw: over several draws both the draws and the examples in
them are resampled. A resample is given by how often each example was drawn, so that one sorting of
the scores serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from biasdiff.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RESAMPLES = 1000


def length_residual(scores: Floats, lengths: Floats) -> Floats:
    """Return what a straight line in the logarithm of the length does not explain of scores.

    r_i = s_i - (a + b log T_i), a and b by least squares over all examples; no ground truth enters.
    Where all lengths are equal, b is 0.

    Args:
        scores: [n].
        lengths: [n], target tokens.

    Returns:
        [n], with mean 0 and no correlation with log T.

    Raises:
        DataError: If a length is below 1.
    """
    if lengths.min() < 1:
        raise DataError(
            f"an example has {lengths.min():g} target tokens",
            expected="1 or more, whose logarithm is taken",
            remedy="remove examples without target tokens",
        )
    centred = np.log(lengths) - np.log(lengths).mean()
    square = float(centred @ centred)
    residual = scores - scores.mean()
    if square <= 1e-20 * len(lengths):
        return np.asarray(residual, dtype=np.float64)
    return np.asarray(residual - centred * (centred @ residual / square), dtype=np.float64)


def length_strata(lengths: Floats, count: int = 4) -> Ints:
    """Return the number of each example's length class, shortest first, [n]: quartiles by default.

    Class ⌊count (rank - 1/2) / n⌋, equal lengths having their mean rank: they are in one class,
    and classes are of equal size only where few lengths are equal; one may be empty.

    Args:
        lengths: [n].
        count: Classes.
    """
    share = (stats.rankdata(lengths) - 0.5) / len(lengths)
    return np.floor(count * share).astype(np.int64)


def stratified_auroc(scores: Floats, truth: Ints, strata: Ints, *, by_pairs: bool = False) -> float:
    """Return the AUROC within strata, averaged over those that hold both classes.

    Args:
        scores: [n], higher = more suspect.
        truth: [n], 1 for a biased example.
        strata: [n], the stratum of each example.
        by_pairs: Weigh a stratum by its pairs of a biased and another example: the share of pairs
            of one stratum in the right order. Otherwise all count alike, however few their pairs.

    Returns:
        In [0, 1]; NaN where no stratum holds both classes.
    """
    once = np.ones((1, len(scores)), dtype=np.int64)
    return float(resampled_stratified_auroc(scores, truth, once, strata, by_pairs=by_pairs)[0])


def resampled_auroc(scores: Floats, truth: Ints, counts: Ints) -> Floats:
    """Return the AUROC of resamples, ties counted half.

    Args:
        scores: [n], higher = more suspect.
        truth: [n], 1 for a biased example.
        counts: [r, n], how often each example is in each resample.

    Returns:
        [r], each in [0, 1]; NaN for a resample of one class.
    """
    return _ratio(*_pairs_in_order(scores, truth, counts))


def resampled_auprc(scores: Floats, truth: Ints, counts: Ints) -> Floats:
    """Return the average precision of resamples, as `sklearn.metrics.average_precision_score`.

    AP = Σ_g (R_g - R_{g-1}) P_g over distinct scores g from above. Arguments and NaN as in
    `resampled_auroc`.
    """
    biased, other = (values[:, ::-1] for values in _by_distinct_score(scores, truth, counts))
    found = biased.cumsum(1)
    drawn = found + other.cumsum(1)
    total, others = biased.sum(1), other.sum(1)
    areas = _ratio((biased * found / np.maximum(drawn, 1)).sum(1), total)
    areas[others == 0] = math.nan
    return areas


def resampled_stratified_auroc(
    scores: Floats, truth: Ints, counts: Ints, strata: Ints, *, by_pairs: bool = False
) -> Floats:
    """Return `stratified_auroc` of resamples, [r]; ``counts`` as in `resampled_auroc`."""
    parts = []
    for stratum in np.unique(strata):
        members = strata == stratum
        parts.append(_pairs_in_order(scores[members], truth[members], counts[:, members]))
    ordered, pairs = np.stack([a for a, _ in parts]), np.stack([b for _, b in parts])
    if by_pairs:
        return _ratio(ordered.sum(0), pairs.sum(0))
    return _ratio((ordered / np.maximum(pairs, 1)).sum(0), (pairs > 0).sum(0))


def resampled_selection(
    scores: Floats, truth: Ints, counts: Ints, fraction: float
) -> tuple[Floats, Floats]:
    """Return coverage and precision of resamples in percent, as `detection_metrics` defines them.

    Args:
        scores: [n]; ties go to the earlier row.
        truth: [n].
        counts: [r, n], as in `resampled_auroc`.
        fraction: Share that is selected, of each resample.

    Returns:
        [r] each; coverage is NaN where no biased example was drawn.
    """
    order = np.argsort(-scores, kind="stable")
    drawn = counts[:, order]
    reached = drawn.cumsum(1)
    wanted = np.maximum(1, np.rint(fraction * reached[:, -1]))
    taken = np.clip(wanted[:, None] - (reached - drawn), 0, drawn)
    hits = (taken * truth[order]).sum(1)
    return 100 * _ratio(hits, counts @ truth), 100 * _ratio(hits, wanted)


def _by_distinct_score(scores: Floats, truth: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Return how many biased and other examples have each distinct score, [r, g], ascending."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))
    drawn = counts[:, order]
    biased = np.add.reduceat(drawn * truth[order], starts, axis=1)
    return biased, np.add.reduceat(drawn, starts, axis=1) - biased


def _pairs_in_order(scores: Floats, truth: Ints, counts: Ints) -> tuple[Floats, Ints]:
    """Return the pairs of a biased and another example in the right order, and all of them, [r]."""
    biased, other = _by_distinct_score(scores, truth, counts)
    below = other.cumsum(1) - other
    return (biased * (below + other / 2)).sum(1), biased.sum(1) * other.sum(1)


def _ratio(part: Floats | Ints, whole: Floats | Ints) -> Floats:
    found = np.full(len(whole), math.nan)
    np.divide(part, whole, out=found, where=whole > 0)
    return found


@dataclass(frozen=True)
class HierarchicalDraws:
    """Resamples of s draws of a mixture: first of the draws, then of the examples in them.

    Attributes:
        members: [r, s], which draw stands in each place of each resample.
        counts: Of each draw, how often each of its examples is in each place it stands in:
            [places, n], in the order of ``members``, row by row.
    """

    members: Ints
    counts: tuple[Ints, ...]


def hierarchical_draws(
    sizes: Sequence[int], *, count: int = RESAMPLES, seed: int = 0
) -> HierarchicalDraws:
    """Draw both levels with replacement; the same for equal arguments.

    So methods that scored the same examples are resampled alike, and the difference of their
    replicates is that of a paired bootstrap. A draw that stands in two places has its examples
    resampled anew in each. With one draw this is the plain bootstrap over examples.

    Args:
        sizes: Examples of each draw of the mixture.
        count: Resamples r.
        seed: Of the resampling.
    """
    random = np.random.default_rng(seed)
    members = random.integers(len(sizes), size=(count, len(sizes)))
    counts = []
    for number, size in enumerate(sizes):
        places = int((members == number).sum())
        rows = random.integers(size, size=(places, size)) + size * np.arange(places)[:, None]
        found = np.bincount(rows.ravel(), minlength=places * size)
        counts.append(found.reshape(places, size).astype(np.int64))
    return HierarchicalDraws(members, tuple(counts))


def hierarchical_replicates(
    draws: HierarchicalDraws, figure: Callable[[int, Ints], Floats]
) -> Floats:
    """Return replicates of a figure's mean over the draws of a mixture.

    Args:
        draws: With s draws and r resamples.
        figure: From the number of a draw and ``counts`` [p, n] to the figure in each resample,
            [p], or to several of them, [p, f].

    Returns:
        [r] or [r, f]; NaN where the figure is NaN in any place.
    """
    found = [figure(number, counts) for number, counts in enumerate(draws.counts)]
    values = np.empty((*draws.members.shape, *found[0].shape[1:]))
    for number, part in enumerate(found):
        values[draws.members == number] = part
    return np.asarray(values.mean(1), dtype=np.float64)
