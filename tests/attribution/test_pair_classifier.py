from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from biasdiff.attribution.pair_classifier import (
    STRENGTHS,
    PairClassifier,
    fit_pair_classifier,
    pair_groups,
)
from biasdiff.data.probe import ProbePair
from biasdiff.errors import DataError


def planted(
    signal: float, *, pairs: int = 60, d: int = 6, seed: int = 0
) -> tuple[Any, Any, list[str]]:
    """Return twins that share most of their features and differ by noise and, in one, a signal."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(pairs, d)) * 3 + 5
    more, less = (shared + 0.5 * rng.normal(size=(pairs, d)) for _ in range(2))
    more[:, 2] += signal
    return more, less, [f"stereotype {i // 3}" for i in range(pairs)]


def penalty_gradient(
    found: PairClassifier, more: Any, less: Any, *, standardise: bool
) -> tuple[Any, float]:
    """Return the gradient of ‖v‖²/2 + C Σ log(1 + exp(-y f)) in v and b, by hand."""
    x = np.concatenate([more, less])
    scale = x.std(0) if standardise else np.ones(x.shape[1])
    centre = x.mean(0) if standardise else np.zeros(x.shape[1])
    truth = np.array([1.0] * len(more) + [0.0] * len(less))
    chances = 1 / (1 + np.exp(-(x @ found.weights + found.intercept)))
    errors = chances - truth
    in_weights = found.weights * scale + found.strength * errors @ ((x - centre) / scale)
    return in_weights, found.strength * float(errors.sum())


@pytest.mark.parametrize("standardise", [True, False])
def test_the_fit_is_the_minimum_of_the_penalised_loss(standardise: bool) -> None:
    more, less, groups = planted(1.0)
    found = fit_pair_classifier(more, less, groups, seed=0, standardise=standardise)
    in_weights, in_intercept = penalty_gradient(found, more, less, standardise=standardise)
    assert np.abs(in_weights).max() < 1e-2
    assert abs(in_intercept) < 1e-2
    assert found.strength in STRENGTHS
    x = np.array([[0.5, -1, 2, 0, 1, 3]])
    by_hand = sum(w * v for w, v in zip(found.weights, x[0], strict=True)) + found.intercept
    assert found.decide(x).tolist() == pytest.approx([by_hand])


def test_a_planted_signal_is_found() -> None:
    more, less, groups = planted(3.0)
    found = fit_pair_classifier(more, less, groups, seed=0)
    assert found.accuracy > 0.95
    assert np.abs(found.weights).argmax() == 2
    fresh_more, fresh_less, _ = planted(3.0, seed=1)
    assert (found.decide(fresh_more) > found.decide(fresh_less)).mean() > 0.95


def test_nothing_is_learned_from_twins_swapped_at_random() -> None:
    more, less, groups = planted(3.0, pairs=300)
    swap = np.random.default_rng(1).random(300) < 0.5
    more[swap], less[swap] = less[swap], more[swap]
    found = fit_pair_classifier(more, less, groups, seed=0)
    assert 0.4 < found.accuracy < 0.6
    assert np.abs(found.decide(np.concatenate([more, less]))).max() < 0.5


def test_what_is_true_of_one_group_only_is_not_counted() -> None:
    # Within each group one feature, the group's own, tells the sides apart; it says nothing of
    # other groups, so held-out pairs are ties. Folds that tore groups apart would know them all.
    groups = [f"{i // 4}" for i in range(40)]
    own = np.array([[group == f"{k}" for k in range(10)] for group in groups], dtype=float)
    found = fit_pair_classifier(own, -own, groups, seed=0, standardise=False)
    assert found.accuracy == 0.5
    assert found.strength == STRENGTHS[0]
    torn = fit_pair_classifier(own, -own, [f"{i}" for i in range(40)], seed=0, standardise=False)
    assert torn.accuracy == 1


def test_the_accuracy_of_two_groups_by_hand() -> None:
    # Two groups, two folds: each is judged by what the other teaches. One feature, and the sign of
    # its weight is that of the difference of the other group's means.
    more, less = np.array([[2.0], [3.0], [1.0], [-4.0]]), np.array([[1.0], [4.0], [0.0], [-7.0]])
    found = fit_pair_classifier(more, less, ["a", "a", "b", "b"], seed=0, standardise=False)
    # Group b has more > less: in a the first pair is right, the second wrong. Group a has none.
    differences = {"a": math.fsum([1, -1]), "b": math.fsum([1, 3])}
    assert differences == {"a": 0, "b": 4}
    assert found.accuracy == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)


def test_sparse_features_are_the_same_as_dense() -> None:
    more, less, groups = planted(1.0)
    dense = fit_pair_classifier(more, less, groups, seed=0, standardise=False)
    thin = [sparse.csr_matrix(side) for side in (more, less)]
    found = fit_pair_classifier(*thin, groups, seed=0, standardise=False)
    assert found.weights == pytest.approx(dense.weights, rel=1e-3, abs=1e-5)
    assert found.accuracy == dense.accuracy
    assert found.decide(thin[0]) == pytest.approx(dense.decide(more), rel=1e-3, abs=1e-4)


def test_neither_units_nor_order_matter() -> None:
    more, less, groups = planted(1.0)
    found = fit_pair_classifier(more, less, groups, seed=0)
    units = np.array([1e-3, 1, 10, 1e3, 1, 7])
    other = fit_pair_classifier(more * units + 4, less * units + 4, groups, seed=0)
    assert other.weights * units == pytest.approx(found.weights, rel=1e-3, abs=1e-5)
    assert other.decide(more * units + 4) == pytest.approx(found.decide(more), rel=1e-3, abs=1e-4)
    order = np.random.default_rng(0).permutation(len(groups))
    moved = fit_pair_classifier(more[order], less[order], [groups[i] for i in order], seed=0)
    assert moved.weights == pytest.approx(found.weights, rel=1e-3, abs=1e-5)
    assert moved.accuracy == found.accuracy


def test_a_feature_that_never_changes() -> None:
    more, less, groups = planted(3.0)
    more[:, 4] = less[:, 4] = 7
    found = fit_pair_classifier(more, less, groups, seed=0)
    assert np.isfinite(found.weights).all()
    assert found.weights[4] == 0


@pytest.mark.parametrize(("groups", "text"), [(["a", "a"], "1 group;"), ([], "0 groups;")])
def test_too_few_groups(groups: list[str], text: str) -> None:
    side = np.zeros((len(groups), 3))
    with pytest.raises(
        DataError, match=rf"mine: the probe pairs make {text} expected 2 or more .*; give more prob"
    ):
        fit_pair_classifier(side, side, groups, seed=0, name="mine")


def test_groups_of_pairs() -> None:
    names = ["late", "", "late", "", "young"]
    pairs = [ProbePair("a", "b", "stereo", "age", 0, {"stereotype_id": name}) for name in names]
    assert pair_groups(pairs) == ["late", "pair 1", "late", "pair 3", "young"]
    assert pair_groups([ProbePair("a", "b", "stereo", "age", 0)]) == ["pair 0"]
