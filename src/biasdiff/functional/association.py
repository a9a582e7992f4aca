"""The word and sentence embedding association test: WEAT, SEAT.

Caliskan et al., "Semantics derived automatically from language corpora contain human-like biases",
2017; May et al., "On Measuring Social Biases in Sentence Encoders", 2019; the permutation test with
its ties and its hallucinated observation is that of github.com/W4ngatang/sent-bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, combinations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from biasdiff.functional.resampling import Draws
from biasdiff.functional.statistics import Floats

MOST_PARTITIONS = 100_000
"""Up to so many partitions all are tried; beyond, one less is drawn and the observed one added."""
_CELLS = 1 << 22
_TOLERANCE = 1e-12


def associations(targets: Tensor, first: Tensor, second: Tensor) -> Floats:
    """Return how much nearer each target is to the first attributes than to the second.

    s(w) = mean_{a in A} cos(w, a) - mean_{b in B} cos(w, b), in float64; NaN for a zero vector.

    Args:
        targets: [n, h], vectors of X and Y.
        first: [a, h], vectors of A.
        second: [b, h], vectors of B.

    Returns:
        [n], each in [-2, 2].
    """
    w, a, b = (v.double() / v.double().norm(dim=1, keepdim=True) for v in (targets, first, second))
    return np.asarray((w @ (a.mean(0) - b.mean(0))).cpu().numpy(), dtype=np.float64)


def effect_size(first: Floats, second: Floats) -> float:
    """Return d = (mean_X s - mean_Y s) / std_{X∪Y}(s), the standard deviation with ddof 1.

    Args:
        first: [x], associations of X.
        second: [y], associations of Y.

    Returns:
        NaN where all associations are equal. Below 2 in size where X and Y are equally many.
    """
    if not len(first) or not len(second):
        return math.nan
    size = _effect_sizes(first[None], second[None])
    return float(size[0])


def resampled_effect_sizes(
    first: Floats, second: Floats, first_draws: Draws, second_draws: Draws
) -> Floats:
    """Return `effect_size` of resamples within X and within Y, [r]; NaN for one without spread.

    Args:
        first: [x].
        second: [y].
        first_draws: [r, x], places in ``first``.
        second_draws: [r, y], places in ``second``.
    """
    return _effect_sizes(first[first_draws], second[second_draws])


def _effect_sizes(first: Floats, second: Floats) -> Floats:
    """Return the effect size of every row of [r, x] and [r, y]."""
    x, y = first.shape[1], second.shape[1]
    mean_x, mean_y = first.mean(1), second.mean(1)
    gap = mean_x - mean_y
    within = ((first - mean_x[:, None]) ** 2).sum(1) + ((second - mean_y[:, None]) ** 2).sum(1)
    variance = (within + x * y / (x + y) * gap**2) / (x + y - 1)
    largest = np.maximum(np.abs(first).max(1), np.abs(second).max(1))
    flat = variance <= (_TOLERANCE * largest) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(flat, np.nan, gap / np.sqrt(variance))


def permutation_p(scores: Floats, first: int, *, seed: int = 0) -> Floats:
    """Return the one-sided p of associations this large: P[S(X', Y') >= S(X, Y)].

    S = Σ_X s - Σ_Y s over partitions of X∪Y into sets of the sizes of X and Y. All partitions are
    tried where there are at most `MOST_PARTITIONS`; else 99,999 drawn ones and the observed one, so
    that p is never 0. A tie counts against the hypothesis of an association; sums that differ by
    rounding alone are ties.

    Args:
        scores: [k, n], s of k tests of equal sizes, which share the partitions; X first.
        first: Size of X.
        seed: Of the drawn partitions.

    Returns:
        [k].
    """
    total = scores.sum(1)
    tolerance = _TOLERANCE * np.abs(scores).sum(1)
    observed = scores[:, :first].sum(1)
    exact = math.comb(scores.shape[1], first) <= MOST_PARTITIONS
    hits = np.zeros(len(scores), dtype=np.int64) if exact else np.ones(len(scores), dtype=np.int64)
    tried = 0 if exact else 1
    # Σ_X' - Σ_Y' = 2 Σ_X' - Σ_X∪Y, so the sum over X' orders the partitions as S does.
    for members in _partitions(scores.shape[1], first, exact, seed):
        hits += (members @ scores.T >= observed - tolerance).sum(0)
        tried += len(members)
    return np.where(np.isnan(total), np.nan, hits / tried)


def _partitions(n: int, first: int, exact: bool, seed: int) -> Iterator[Floats]:
    """Yield blocks [b, n] of ones for the members of X' and zeros for those of Y'."""
    rows = max(1, _CELLS // n)
    if exact:
        count = math.comb(n, first)
        flat = chain.from_iterable(combinations(range(n), first))
        places = np.fromiter(flat, dtype=np.int64, count=count * first).reshape(count, first)
        for start in range(0, count, rows):
            block = np.zeros((len(places[start : start + rows]), n))
            np.put_along_axis(block, places[start : start + rows], 1.0, axis=1)
            yield block
        return
    random = np.random.default_rng([seed, n, first])
    left = MOST_PARTITIONS - 1
    while left:
        keys = random.random((min(rows, left), n))
        bound = np.partition(keys, first - 1, axis=1)[:, first - 1]
        yield (keys <= bound[:, None]).astype(np.float64)
        left -= len(keys)


def parametric_p(scores: Floats, first: int) -> float:
    """Return the same p with S taken as normal over the partitions.

    Over all partitions Σ_X' s has mean x s̄ and variance x y / (x + y) · std_{X∪Y}(s)², which
    shuffles only estimate, so z = d √(x y / (x + y)) and p = 1 - Φ(z).

    Args:
        scores: [n], X first.
        first: Size of X.
    """
    second = len(scores) - first
    z = effect_size(scores[:first], scores[first:]) * math.sqrt(first * second / len(scores))
    return float(stats.norm.sf(z))


def embedding_of(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """Return one vector for each text from the states of its tokens, in float32 or better.

    Args:
        hidden: [n, t, h].
        mask: [n, t], 1 for tokens and 0 for padding, on either side.
        how: ``mean`` over the tokens, or the ``last`` token.

    Returns:
        [n, h]; padding has no part in it, whatever it holds.
    """
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    real = mask.bool()
    if how == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(real, places, -1).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    summed = hidden.masked_fill(~real[:, :, None], 0).sum(1)
    return summed / real.sum(1, keepdim=True)
