from __future__ import annotations

import math

import numpy as np
import pytest

from biasdiff.functional.statistics import (
    auroc,
    bootstrap_interval,
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
