from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from biasdiff.functional.datamodeling import (
    Correlation,
    attainable_correlation,
    correlation,
    datamodeling_score,
    partial_rank_correlation,
    predicted_sums,
    random_halves,
    rank_correlation,
    resample_counts,
    resampled_ranks,
)
from biasdiff.functional.resampling import draws

Floats = NDArray[np.float64]


def no_resamples(size: int) -> Floats:
    return np.empty((0, size))


def tied(rng: np.random.Generator, size: int, *, kinds: int = 7) -> Floats:
    return rng.integers(0, kinds, size).astype(np.float64)


class LinearWorld:
    """Every example adds its own effect to what is measured, and each training adds noise."""

    def __init__(self, *, size: int, subsets: int, noise: float, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.effects = rng.normal(size=size)
        self.members = random_halves(size, subsets, seed=seed)
        # A sum over a random half, drawn without replacement, has the variance n S² / 4.
        self.signal = math.sqrt(size * self.effects.var(ddof=1) / 4)
        self.noise = noise * self.signal
        self._rng = rng

    def measure(self) -> Floats:
        sums = np.array([sum(self.effects[row]) for row in self.members])
        return sums + self.noise * self._rng.normal(size=len(sums))


def spearman_of_normals(pearson: float) -> float:
    return 6 / math.pi * math.asin(pearson / 2)


# -- subsets and predictions


def test_halves_are_halves_and_more_of_them_keep_the_first() -> None:
    few, many = random_halves(9, 5, seed=3), random_halves(9, 400, seed=3)
    assert few.shape == (5, 9)
    assert (many.sum(1) == 4).all()
    assert (many[:5] == few).all()
    assert (random_halves(9, 5, seed=4) != few).any()
    # A share of 4/9 holds an example, one of 4·3 / (9·8) a pair, up to five standard errors.
    each = many.mean(0)
    assert np.abs(each - 4 / 9).max() < 5 * math.sqrt(4 / 9 * 5 / 9 / 400)
    pairs = (many[:, :, None] & many[:, None, :]).mean(0)[np.triu_indices(9, 1)]
    assert np.abs(pairs - 1 / 6).max() < 5 * math.sqrt(1 / 6 * 5 / 6 / 400)


def test_nothing_to_halve() -> None:
    with pytest.raises(ValueError, match="size must be at least 2, got 1"):
        random_halves(1, 3, seed=0)


def test_predicted_sums_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    members = random_halves(11, 6, seed=0)
    one, several = rng.normal(size=11), rng.normal(size=(11, 3))
    for row, (total, totals) in enumerate(
        zip(predicted_sums(members, one), predicted_sums(members, several), strict=True)
    ):
        inside = [i for i in range(11) if members[row, i]]
        assert total == pytest.approx(math.fsum(one[i] for i in inside), abs=1e-12)
        for target in range(3):
            expected = math.fsum(several[i, target] for i in inside)
            assert totals[target] == pytest.approx(expected, abs=1e-12)


# -- resamples


def test_counts_are_those_of_the_draws() -> None:
    counts = resample_counts(8, key=(5,), resamples=30)
    for row, chosen in zip(counts, draws(8, key=(5,), count=30), strict=True):
        assert row.tolist() == [chosen.tolist().count(i) for i in range(8)]


def test_clusters_are_drawn_whole() -> None:
    clusters = list("bacbdaaeb")
    counts = resample_counts(9, clusters=clusters, resamples=300)
    names = list(dict.fromkeys(clusters))
    for row, chosen in zip(counts, draws(5, count=300), strict=True):
        assert row.tolist() == [chosen.tolist().count(names.index(name)) for name in clusters]


def test_no_interval_from_a_handful() -> None:
    assert resample_counts(4).shape == (0, 4)
    few = resample_counts(20, clusters=list("abcd") * 5)
    assert few.shape == (0, 20)
    rng = np.random.default_rng(0)
    found = rank_correlation(rng.normal(size=20), rng.normal(size=20), few)
    assert not math.isnan(found.value)
    assert all(map(math.isnan, found.interval))


def test_ranks_of_a_resample_against_scipy_on_the_copies() -> None:
    rng = np.random.default_rng(1)
    for values in (rng.normal(size=12), tied(rng, 12)):
        counts = resample_counts(12, resamples=40)
        found = resampled_ranks(values, counts)
        for ranks, row in zip(found, counts.astype(int), strict=True):
            copies = np.repeat(np.arange(12), row)
            assert ranks[copies] == pytest.approx(stats.rankdata(values[copies]), abs=1e-9)


# -- correlations


@pytest.mark.parametrize(
    ("ours", "oracle"),
    [(correlation, stats.pearsonr), (rank_correlation, stats.spearmanr)],
    ids=["pearson", "spearman"],
)
@pytest.mark.parametrize("ties", [False, True])
def test_correlations_against_scipy_on_the_copies(
    ours: Callable[[Floats, Floats, Floats], Correlation],
    oracle: Callable[[Floats, Floats], tuple[float, float]],
    ties: bool,
) -> None:
    rng = np.random.default_rng(2)
    x = tied(rng, 15) if ties else rng.normal(size=15)
    y = x + (tied(rng, 15) if ties else rng.normal(size=15))
    counts = resample_counts(15, resamples=60)
    found = ours(x, y, counts)
    assert found.value == pytest.approx(oracle(x, y)[0], abs=1e-12)
    assert found.replicates.shape == (60,)
    for value, row in zip(found.replicates, counts.astype(int), strict=True):
        copies = np.repeat(np.arange(15), row)
        assert value == pytest.approx(oracle(x[copies], y[copies])[0], abs=1e-12)


def test_correlation_survives_a_large_offset() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=30), rng.normal(size=30)
    found = correlation(x + 1e6, y - 1e6, no_resamples(30)).value
    assert found == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-8)


def test_a_side_that_does_not_vary_gives_nan() -> None:
    x = np.full(6, 0.1)  # whose mean in floating point is not 0.1
    for found in (
        correlation(x, np.arange(6.0), no_resamples(6)),
        rank_correlation(np.arange(6.0), x, no_resamples(6)),
        rank_correlation(np.arange(2.0), np.arange(2.0), no_resamples(2)),
    ):
        assert math.isnan(found.value)
        assert all(map(math.isnan, found.interval))


def test_resamples_without_spread_count_for_nothing() -> None:
    x, y = np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0, 3.0])
    counts = np.array([[1.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 3.0, 1.0]])
    found = rank_correlation(x, y, counts)
    assert math.isnan(found.replicates[0])
    assert found.replicates[1] == pytest.approx(found.value)
    assert math.isnan(found.replicates[2])  # two distinct observations always lie on a line
    assert found.interval == pytest.approx((found.value, found.value))


def test_shapes_and_values_that_cannot_be_right() -> None:
    three = np.arange(3.0)
    with pytest.raises(ValueError, match=r"x is \[3\], y \[2\] and counts \[0, 3\]: pass n values"):
        correlation(three, np.arange(2.0), no_resamples(3))
    with pytest.raises(ValueError, match="x or y holds NaN or infinity: leave such"):
        rank_correlation(three, np.array([0.0, math.nan, 1.0]), no_resamples(3))
    with pytest.raises(ValueError, match=r"predicted is \[3\] and measured \[3, 1\]: pass one"):
        datamodeling_score(three, three[:, None], no_resamples(3))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    counts, truth, trials = resample_counts(60, resamples=300), spearman_of_normals(0.5), 300
    held = 0
    for _ in range(trials):
        x = rng.normal(size=60)
        y = 0.5 * x + math.sqrt(0.75) * rng.normal(size=60)
        low, high = rank_correlation(x, y, counts).interval
        held += low <= truth <= high
    assert 0.90 <= held / trials <= 0.98


def test_clustered_intervals_know_that_checkpoints_of_a_run_resemble_each_other() -> None:
    rng = np.random.default_rng(5)
    runs, epochs, trials = 12, 6, 120
    names = [str(i // epochs) for i in range(runs * epochs)]
    counts = resample_counts(runs * epochs, clusters=names, resamples=300)
    alone = resample_counts(runs * epochs, resamples=300)
    held, held_alone = 0, 0
    for _ in range(trials):
        x, y = (np.repeat(rng.normal(size=runs), epochs) for _ in range(2))
        x, y = (side + 0.2 * rng.normal(size=len(side)) for side in (x, y))
        low, high = rank_correlation(x, y, counts).interval
        held += low <= 0 <= high
        low, high = rank_correlation(x, y, alone).interval
        held_alone += low <= 0 <= high
    assert held / trials >= 0.85
    assert held_alone / trials <= 0.75


def test_partial_correlation_is_that_of_the_residuals_of_the_ranks() -> None:
    rng = np.random.default_rng(6)
    z = tied(rng, 40)
    x, y = z + rng.normal(size=40), z + rng.normal(size=40)
    counts = resample_counts(40, resamples=20)
    found = partial_rank_correlation(x, y, z, counts)

    def oracle(copies: NDArray[np.int64]) -> float:
        rank_x, rank_y, rank_z = (stats.rankdata(side[copies]) for side in (x, y, z))
        design = np.column_stack([np.ones(len(copies)), rank_z])
        left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in (rank_x, rank_y)]
        return float(stats.pearsonr(*left)[0])

    assert found.value == pytest.approx(oracle(np.arange(40)), abs=1e-9)
    for value, row in zip(found.replicates, counts.astype(int), strict=True):
        assert value == pytest.approx(oracle(np.repeat(np.arange(40), row)), abs=1e-9)


def test_nothing_is_left_of_a_side_that_is_the_given_one() -> None:
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=20), rng.normal(size=20)
    assert math.isnan(partial_rank_correlation(x, y, 2 * x + 1, no_resamples(20)).value)
    assert math.isnan(partial_rank_correlation(x, y, np.zeros(20), no_resamples(20)).value)


# -- the datamodeling score


def test_scores_by_target_are_averaged_and_a_constant_target_is_left_out() -> None:
    rng = np.random.default_rng(8)
    predicted, measured = rng.normal(size=(25, 4)), rng.normal(size=(25, 4))
    counts = resample_counts(25, resamples=15)
    found = datamodeling_score(predicted, measured, counts)
    by_target = [stats.spearmanr(predicted[:, t], measured[:, t])[0] for t in range(4)]
    assert found.value == pytest.approx(np.mean(by_target), abs=1e-12)
    for value, row in zip(found.replicates, counts.astype(int), strict=True):
        copies = np.repeat(np.arange(25), row)
        expected = [stats.spearmanr(predicted[copies, t], measured[copies, t])[0] for t in range(4)]
        assert value == pytest.approx(np.mean(expected), abs=1e-12)
    predicted[:, 2] = 1.0
    without = datamodeling_score(predicted, measured, counts).value
    assert without == pytest.approx(np.mean([by_target[t] for t in (0, 1, 3)]), abs=1e-12)
    assert math.isnan(datamodeling_score(np.ones((25, 2)), measured[:, :2], counts).value)


def test_one_target_may_be_a_column_or_none() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=20), rng.normal(size=20)
    counts = resample_counts(20, resamples=5)
    alone = datamodeling_score(x, y, counts)
    column = datamodeling_score(x[:, None], y[:, None], counts)
    assert alone.value == column.value == rank_correlation(x, y, counts).value
    assert alone.replicates.tolist() == column.replicates.tolist()


def test_a_linear_world_without_noise_is_ranked_perfectly() -> None:
    world = LinearWorld(size=40, subsets=60, noise=0.0)
    measured, none = world.measure(), no_resamples(60)
    for scores, expected in (
        (world.effects, 1.0),
        (3 * world.effects + 7, 1.0),  # all subsets are of one size, so a constant adds the same
        (-world.effects, -1.0),
    ):
        found = datamodeling_score(predicted_sums(world.members, scores), measured, none)
        assert found.value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("error", [0.0, 1.0])
def test_a_noisy_linear_world_has_the_score_that_it_must_have(noise: float, error: float) -> None:
    world = LinearWorld(size=100, subsets=4000, noise=noise, seed=1)
    rng = np.random.default_rng(10)
    wrong = rng.normal(size=100)
    wrong -= np.cov(wrong, world.effects)[0, 1] / world.effects.var(ddof=1) * world.effects
    wrong *= world.effects.std() / wrong.std()
    scores = world.effects + error * wrong  # errors of no correlation with the effects
    truth = 1 / math.sqrt((1 + noise**2) * (1 + error**2))
    counts = resample_counts(4000, resamples=0)
    found = datamodeling_score(predicted_sums(world.members, scores), world.measure(), counts)
    assert found.value == pytest.approx(spearman_of_normals(truth), abs=0.04)


def test_an_interval_over_a_hundred_subsets_holds_the_score_of_the_world() -> None:
    truth = spearman_of_normals(1 / math.sqrt(2))
    held = 0
    for seed in range(60):
        world = LinearWorld(size=80, subsets=100, noise=1.0, seed=seed)
        counts = resample_counts(100, resamples=200)
        predicted = predicted_sums(world.members, world.effects)
        low, high = datamodeling_score(predicted, world.measure(), counts).interval
        held += low <= truth <= high
    assert held >= 52  # of 60; 57 are expected


def test_the_ceiling_is_what_the_true_effects_reach() -> None:
    world = LinearWorld(size=60, subsets=6000, noise=1.5, seed=2)
    repeats = [world.measure() for _ in range(3)]
    predicted, none = predicted_sums(world.members, world.effects), no_resamples(6000)
    reliability = correlation(repeats[0], repeats[1], none).value
    for count in (1, 3):
        reached = correlation(predicted, np.mean(repeats[:count], axis=0), none).value
        assert attainable_correlation(reliability, count) == pytest.approx(reached, abs=0.03)


def test_the_ceiling_by_hand() -> None:
    assert attainable_correlation(0.25, 1) == pytest.approx(0.5)
    assert attainable_correlation(0.5, 3) == pytest.approx(math.sqrt(1.5 / 2))
    assert attainable_correlation(-0.2, 2) == 0
    assert math.isnan(attainable_correlation(math.nan, 2))
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        attainable_correlation(0.5, 0)
