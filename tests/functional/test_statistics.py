from __future__ import annotations

import math

import numpy as np
import pytest

from biasdiff.functional.statistics import (
    auroc,
    bootstrap_interval,
    holm,
    mcnemar,
    paired_p,
    proportion_interval,
    standard_error,
)


def test_standard_error_by_hand() -> None:
    assert standard_error(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(
        math.sqrt(5 / 3) / math.sqrt(4)
    )


@pytest.mark.parametrize("values", [[], [3.0]])
def test_below_two_values_nothing_is_known(values: list[float]) -> None:
    array = np.array(values)
    assert math.isnan(standard_error(array))
    assert all(map(math.isnan, bootstrap_interval(array)))


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    error = standard_error(values)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_bootstrap_of_a_ratio_against_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.normal(5.0, 1.0, 60), rng.uniform(1.0, 9.0, 60)
    draw = np.random.default_rng(2)
    ratios = []
    for _ in range(4000):
        rows = draw.integers(0, 60, 60)
        ratios.append(values[rows].sum() / weights[rows].sum())
    expected = np.quantile(ratios, [0.025, 0.975])
    spread = expected[1] - expected[0]
    assert bootstrap_interval(values, weights) == pytest.approx(expected, abs=0.05 * spread)


def test_bootstrap_is_repeatable_and_follows_its_seed() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_equal_values_give_a_point() -> None:
    assert bootstrap_interval(np.array([2.0, 2.0, 2.0])) == (2.0, 2.0)
    assert bootstrap_interval(np.array([2.0, 2.0]), np.array([4.0, 4.0])) == (0.5, 0.5)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (5, 10), (10, 10), (1, 3)])
def test_wilson_interval_is_its_formula(successes: int, n: int) -> None:
    z = 1.959963984540054
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = (centre - half, centre + half)
    assert proportion_interval(successes, n) == pytest.approx(expected, abs=1e-9)


def test_wilson_interval_of_nothing() -> None:
    assert all(map(math.isnan, proportion_interval(0, 0)))


def test_auroc_equals_scikit_learn_with_ties() -> None:
    from sklearn.metrics import roc_auc_score

    draw = np.random.default_rng(0)
    for _ in range(20):
        truth = np.array([0, 1, *draw.integers(0, 2, 30)])
        scores = draw.integers(0, 6, 32).astype(float)
        assert auroc(truth, scores) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_clustered_errors_by_hand_and_of_singletons() -> None:
    values = np.array([1.0, 3.0, 2.0, 6.0])
    assert standard_error(values, list("abcd")) == pytest.approx(standard_error(values))
    # cluster sums of residuals about the mean 3: (1 - 3) + (3 - 3) = -2 and (2 - 3) + (6 - 3) = 2
    assert standard_error(values, list("aabb")) == pytest.approx(math.sqrt(2 * (4 + 4)) / 4)
    assert math.isnan(standard_error(values, list("aaaa")))


def test_cluster_bootstrap_against_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(25), 4)
    values = rng.normal(size=25)[clusters] + 0.1 * rng.normal(size=100)
    draw = np.random.default_rng(4)
    means = []
    for _ in range(4000):
        chosen = draw.integers(0, 25, 25)
        means.append(np.concatenate([values[clusters == c] for c in chosen]).mean())
    expected = np.quantile(means, [0.025, 0.975])
    spread = expected[1] - expected[0]
    found = bootstrap_interval(values, clusters=clusters.tolist())
    assert found == pytest.approx(expected, abs=0.05 * spread)
    alone = bootstrap_interval(values)
    assert found[1] - found[0] > 1.5 * (alone[1] - alone[0])


def test_mcnemar_by_hand() -> None:
    before = np.array([True] * 6 + [False] * 4)
    after = np.array([True] + [False] * 5 + [True] + [False] * 3)
    # five lost, one gained: 2 * (1 + 6) / 2**6
    assert mcnemar(after, before) == pytest.approx(14 / 64)
    assert mcnemar(before, before) == 1.0


def test_paired_p_is_the_t_test() -> None:
    from scipy import stats

    values = np.random.default_rng(0).normal(0.3, 1, 40)
    assert paired_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert paired_p(np.zeros(5)) == 1.0
    assert math.isnan(paired_p(np.array([1.0])))
    doubled = np.repeat(values, 2)
    assert paired_p(doubled, np.repeat(np.arange(40), 2).tolist()) == pytest.approx(
        paired_p(values), rel=0.02
    )


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    found = holm([0.02, math.nan, 0.03])
    assert found[0] == pytest.approx(0.04)
    assert math.isnan(found[1])
