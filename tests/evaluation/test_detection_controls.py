from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from biasdiff.errors import DataError
from biasdiff.evaluation.detection import detection_metrics, selection_metrics
from biasdiff.evaluation.detection_controls import (
    Floats,
    Ints,
    hierarchical_draws,
    hierarchical_replicates,
    length_residual,
    length_strata,
    resampled_auprc,
    resampled_auroc,
    resampled_selection,
    resampled_stratified_auroc,
    stratified_auroc,
)

N = 60


def made(*, ties: bool = False, seed: int = 0) -> tuple[Floats, Ints, Floats]:
    """Return scores that follow truth and length, the truth, and lengths that follow the truth."""
    random = np.random.default_rng(seed)
    truth = (random.random(N) < 0.35).astype(np.int64)
    lengths = (random.integers(3, 40, N) - 2 * truth).clip(1).astype(np.float64)
    scores = 0.8 * truth - 0.5 * np.log(lengths) + random.normal(0, 0.5, N)
    return (scores.round(0) if ties else scores), truth, lengths


def resamples(count: int = 25, seed: int = 1) -> Ints:
    random = np.random.default_rng(seed)
    rows = [np.bincount(random.integers(N, size=N), minlength=N) for _ in range(count)]
    return np.stack([np.ones(N, dtype=np.int64), *rows]).astype(np.int64)


def test_the_residual_is_that_of_a_regression_on_the_log_of_the_length() -> None:
    scores, _, lengths = made()
    x = np.log(lengths)[:, None]
    expected = scores - LinearRegression().fit(x, scores).predict(x)
    residual = length_residual(scores, lengths)
    np.testing.assert_allclose(residual, expected, atol=1e-12)
    assert residual.mean() == pytest.approx(0, abs=1e-12)
    assert np.corrcoef(residual, np.log(lengths))[0, 1] == pytest.approx(0, abs=1e-12)


def test_the_residual_does_not_change_with_what_a_line_in_the_log_explains() -> None:
    scores, _, lengths = made()
    moved = 3 + scores - 7 * np.log(lengths)
    np.testing.assert_allclose(
        length_residual(moved, lengths), length_residual(scores, lengths), atol=1e-10
    )


@pytest.mark.parametrize("length", [1.0, 7.0])
def test_equal_lengths_explain_nothing(length: float) -> None:
    scores, _, _ = made()
    found = length_residual(scores, np.full(N, length))
    np.testing.assert_allclose(found, scores - scores.mean())


def test_an_example_without_target_tokens_is_refused() -> None:
    with pytest.raises(DataError, match=r"0 target tokens; expected 1 or more.*remove examples"):
        length_residual(np.zeros(2), np.array([3.0, 0.0]))


def test_quartiles_by_hand() -> None:
    lengths = np.array([8, 1, 2, 3, 4, 5, 6, 7], dtype=np.float64)
    assert length_strata(lengths).tolist() == [3, 0, 0, 1, 1, 2, 2, 3]
    assert length_strata(lengths, 2).tolist() == [1, 0, 0, 0, 0, 1, 1, 1]


def test_equal_lengths_are_in_one_class_and_longer_ones_not_below() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 9, 200).astype(np.float64)
    strata = length_strata(lengths)
    classes = [set(strata[lengths == length]) for length in range(1, 9)]
    assert all(len(found) == 1 for found in classes)
    assert [min(found) for found in classes] == sorted(min(found) for found in classes)
    assert len(set(length_strata(np.full(5, 4.0)))) == 1


@pytest.mark.parametrize(("common", "rare"), [(64.0, 9.0), (9.0, 64.0)])
def test_a_length_that_most_have_leaves_the_others_apart(common: float, rare: float) -> None:
    strata = length_strata(np.array([common] * 8 + [rare] * 2))
    assert len(set(strata[:8])) == 1
    assert not set(strata[:8]) & set(strata[8:])


def test_quartiles_of_different_lengths_are_those_of_quantiles() -> None:
    lengths = np.random.default_rng(0).permutation(100).astype(np.float64) + 1
    expected = np.searchsorted(np.quantile(lengths, [0.25, 0.5, 0.75]), lengths, side="right")
    assert length_strata(lengths).tolist() == expected.tolist()


def pairs_of(scores: Floats, truth: Ints, strata: Ints) -> dict[int, tuple[float, int]]:
    """Return, by stratum, pairs in order and pairs: a loop over all pairs of examples."""
    found: dict[int, tuple[float, int]] = {}
    for i in range(len(scores)):
        for j in range(len(scores)):
            if truth[i] == 1 and truth[j] == 0 and strata[i] == strata[j]:
                order = 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
                ordered, pairs = found.get(strata[i], (0.0, 0))
                found[strata[i]] = (ordered + order, pairs + 1)
    return found


@pytest.mark.parametrize("ties", [False, True])
def test_stratified_areas_against_a_loop_over_pairs(ties: bool) -> None:
    scores, truth, lengths = made(ties=ties)
    strata = length_strata(lengths)
    truth[strata == 3] = 1  # a stratum without other examples counts for nothing
    found = pairs_of(scores, truth, strata)
    assert set(found) == {0, 1, 2}
    equal = np.mean([ordered / pairs for ordered, pairs in found.values()])
    weighted = sum(o for o, _ in found.values()) / sum(p for _, p in found.values())
    assert stratified_auroc(scores, truth, strata) == pytest.approx(equal)
    assert stratified_auroc(scores, truth, strata, by_pairs=True) == pytest.approx(weighted)


def test_one_stratum_gives_the_plain_area() -> None:
    scores, truth, _ = made()
    for by_pairs in (False, True):
        found = stratified_auroc(scores, truth, np.zeros(N, dtype=np.int64), by_pairs=by_pairs)
        assert found == pytest.approx(roc_auc_score(truth, scores))


def test_no_stratum_with_both_classes_gives_nan() -> None:
    truth = np.array([1, 1, 0, 0])
    for by_pairs in (False, True):
        assert math.isnan(stratified_auroc(np.arange(4.0), truth, truth, by_pairs=by_pairs))


def test_strata_take_away_what_length_alone_finds() -> None:
    random = np.random.default_rng(0)
    truth = (np.arange(4000) % 2).astype(np.int64)
    lengths = random.integers(5, 40, 4000) - 8.0 * truth + 10
    noise = random.normal(0, 1, 4000)
    strata = length_strata(lengths, 20)
    assert roc_auc_score(truth, noise - lengths) > 0.65
    assert stratified_auroc(noise - lengths, truth, strata) < 0.56
    assert stratified_auroc(noise + 3 * truth, truth, strata) > 0.97


@pytest.mark.parametrize("ties", [False, True])
def test_areas_of_resamples_are_those_of_the_rows_written_out(ties: bool) -> None:
    scores, truth, lengths = made(ties=ties)
    strata = length_strata(lengths)
    counts = resamples()
    areas = resampled_auroc(scores, truth, counts)
    precisions = resampled_auprc(scores, truth, counts)
    within = resampled_stratified_auroc(scores, truth, counts, strata)
    by_pairs = resampled_stratified_auroc(scores, truth, counts, strata, by_pairs=True)
    for number, row in enumerate(counts):
        rows = np.repeat(np.arange(N), row)
        assert areas[number] == pytest.approx(roc_auc_score(truth[rows], scores[rows]))
        assert precisions[number] == pytest.approx(
            average_precision_score(truth[rows], scores[rows])
        )
        own = (scores[rows], truth[rows], strata[rows])
        assert within[number] == pytest.approx(stratified_auroc(*own))
        assert by_pairs[number] == pytest.approx(stratified_auroc(*own, by_pairs=True))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.35, 1.0])
def test_selections_of_resamples_are_those_of_the_rows_written_out(
    fraction: float, ties: bool
) -> None:
    scores, truth, _ = made(ties=ties)
    counts = resamples()
    coverage, precision = resampled_selection(scores, truth, counts, fraction)
    for number, row in enumerate(counts):
        rows = np.repeat(np.arange(N), row)
        expected = selection_metrics(scores[rows], truth[rows], fraction=fraction)
        assert coverage[number] == pytest.approx(expected["coverage"].value)
        assert precision[number] == pytest.approx(expected["precision"].value)


def test_a_selection_is_that_of_the_detection_metrics() -> None:
    scores, truth, _ = made()
    whole = detection_metrics(scores, truth, fraction=0.15)
    assert selection_metrics(scores, truth, fraction=0.15) == {
        name: whole[name] for name in ("coverage", "precision")
    }


@pytest.mark.parametrize("cells", [1, 700, 1 << 21])
def test_the_intervals_of_the_areas_are_those_of_resampled_rows(
    monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    monkeypatch.setattr("biasdiff.evaluation.detection.CELLS", cells)
    monkeypatch.setattr("biasdiff.evaluation.detection.RESAMPLES", 40)
    scores, truth, _ = made(ties=True)
    found = detection_metrics(scores, truth, fraction=0.15, seed=3)
    draw = np.random.default_rng(3)
    rows = [draw.integers(0, N, N) for _ in range(40)]
    for name, area in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        values = [area(truth[r], scores[r]) for r in rows]
        assert found[name].value == pytest.approx(area(truth, scores))
        assert found[name].interval == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
        assert found[name].standard_error == pytest.approx(np.std(values, ddof=1))


def test_resamples_of_one_class_give_nan() -> None:
    scores, truth = np.array([3.0, 2.0, 1.0]), np.array([1, 0, 0])
    counts = np.array([[3, 0, 0], [0, 1, 2], [1, 1, 1]])
    for areas in (
        resampled_auroc(scores, truth, counts),
        resampled_auprc(scores, truth, counts),
        resampled_stratified_auroc(scores, truth, counts, np.zeros(3, dtype=np.int64)),
    ):
        assert np.isnan(areas).tolist() == [True, True, False]
        assert areas[2] == 1
    coverage, precision = resampled_selection(scores, truth, counts, 0.3)
    np.testing.assert_allclose(coverage, [100 / 3, np.nan, 100])
    np.testing.assert_allclose(precision, [100, 0, 100])


def test_every_place_has_as_many_examples_as_its_draw() -> None:
    draws = hierarchical_draws([5, 7, 3], count=40, seed=2)
    assert draws.members.shape == (40, 3)
    for number, (size, counts) in enumerate(zip((5, 7, 3), draws.counts, strict=True)):
        assert counts.shape == ((draws.members == number).sum(), size)
        assert (counts.sum(1) == size).all()


def test_equal_arguments_give_equal_draws() -> None:
    first, again, other = (hierarchical_draws([9, 9], count=30, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.members, again.members)
    for a, b in zip(first.counts, again.counts, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.members, other.members)


def test_replicates_against_a_loop() -> None:
    data = [made(seed=s)[:2] for s in range(3)]
    draws = hierarchical_draws([N] * 3, count=30)
    found = hierarchical_replicates(draws, lambda j, counts: resampled_auroc(*data[j], counts))
    waiting = [iter(counts) for counts in draws.counts]
    for replicate, members in zip(found, draws.members, strict=True):
        areas = []
        for number in members:
            scores, truth = data[number]
            rows = np.repeat(np.arange(N), next(waiting[number]))
            areas.append(roc_auc_score(truth[rows], scores[rows]))
        assert replicate == pytest.approx(np.mean(areas))


def test_replicates_of_several_figures_are_paired() -> None:
    data = [made(seed=s)[:2] for s in range(3)]
    draws = hierarchical_draws([N] * 3, count=50)

    def both(number: int, counts: Ints) -> Floats:
        scores, truth = data[number]
        halved = 5 - scores / 2
        return np.stack([resampled_auroc(s, truth, counts) for s in (scores, -halved)], axis=1)

    found = hierarchical_replicates(draws, both)
    assert found.shape == (50, 2)
    np.testing.assert_allclose(found[:, 0], found[:, 1])


def test_the_spread_of_a_mean_is_that_of_both_levels() -> None:
    """Var = (between + mean_j of within_j / n_j) / s, with variances of the sample (ddof 0)."""
    random = np.random.default_rng(0)
    values = [random.normal(centre, 2.0, n) for centre, n in ((0.0, 30), (0.5, 50), (1.5, 40))]
    draws = hierarchical_draws([len(v) for v in values], count=40_000)
    found = hierarchical_replicates(draws, lambda j, counts: counts @ values[j] / len(values[j]))
    between = np.var([v.mean() for v in values])
    within = np.mean([v.var() / len(v) for v in values])
    assert found.var() == pytest.approx((between + within) / 3, rel=0.03)
    assert found.mean() == pytest.approx(np.mean([v.mean() for v in values]), abs=0.01)


def test_one_draw_is_the_plain_bootstrap() -> None:
    values = np.random.default_rng(0).normal(size=40)
    draws = hierarchical_draws([40], count=20_000)
    found = hierarchical_replicates(draws, lambda _, counts: counts @ values / 40)
    assert found.var() == pytest.approx(values.var() / 40, rel=0.03)
