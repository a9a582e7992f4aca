from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from biasdiff.functional import association
from biasdiff.functional.association import (
    associations,
    effect_size,
    embedding_of,
    parametric_p,
    permutation_p,
    resampled_effect_sizes,
)
from biasdiff.functional.resampling import bootstrap_p, centred_interval, draws, spread


def test_associations_by_hand() -> None:
    targets = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    first = torch.tensor([[5.0, 0.0], [0.0, 0.1]])  # cos with (1, 0): 1 and 0
    second = torch.tensor([[0.0, 7.0]])
    half = math.sqrt(0.5)
    assert associations(targets, first, second) == pytest.approx([0.5, -0.5, half - half])


def test_associations_as_one_cosine_at_a_time() -> None:
    torch.manual_seed(0)
    w, a, b = torch.randn(4, 5), torch.randn(3, 5), torch.randn(2, 5)

    def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(torch.dot(x, y) / (x.norm() * y.norm()))

    slow = [np.mean([cosine(x, y) for y in a]) - np.mean([cosine(x, y) for y in b]) for x in w]
    assert associations(w, a, b) == pytest.approx(slow, abs=1e-6)


def test_a_zero_vector_has_no_association() -> None:
    found = associations(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.eye(2)[:1], torch.eye(2)[1:])
    assert math.isnan(found[0])
    assert found[1] == 1


def test_effect_size_by_hand() -> None:
    # mean 0.5 and -0.5; squares about 0 sum to 2.5, over 4 - 1
    x, y = np.array([1.0, 0.0]), np.array([-1.0, -0.0])
    assert effect_size(x, y) == pytest.approx(1 / math.sqrt(2 / 3))
    both = np.array([0.3, 0.1, 0.7, 0.2, 0.9])
    expected = (both[:2].mean() - both[2:].mean()) / both.std(ddof=1)
    assert effect_size(both[:2], both[2:]) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30])
def test_without_spread_the_effect_size_is_nan(value: float) -> None:
    assert math.isnan(effect_size(np.full(3, value), np.full(3, value)))
    assert math.isnan(effect_size(np.array([]), np.ones(3)))


def test_effect_size_knows_no_scale_and_no_origin() -> None:
    x, y = np.array([0.1, 0.5, 0.2]), np.array([0.4, 0.3, 0.25])
    assert effect_size(1e-9 * x, 1e-9 * y) == pytest.approx(effect_size(x, y))
    assert effect_size(x + 1, y + 1) == pytest.approx(effect_size(x, y))


def slow_p(scores: list[float], first: int) -> float:
    total = hits = 0
    for members in combinations(range(len(scores)), first):
        others = [i for i in range(len(scores)) if i not in members]
        s = sum(scores[i] for i in members) - sum(scores[i] for i in others)
        observed = sum(scores[:first]) - sum(scores[first:])
        hits += s >= observed - 1e-9
        total += 1
    return hits / total


@pytest.mark.parametrize(("x", "y"), [(1, 1), (2, 2), (4, 4), (5, 5), (2, 4), (4, 1)])
def test_exact_p_as_itertools(x: int, y: int) -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(3, x + y))
    scores[1] = scores[1].round()  # ties
    scores[2, :x] += 2
    found = permutation_p(scores, x)
    assert found.tolist() == pytest.approx([slow_p(row.tolist(), x) for row in scores])


def test_ties_count_against_even_if_sums_differ_by_rounding() -> None:
    assert permutation_p(np.full((1, 6), 0.1), 3)[0] == 1
    assert permutation_p(np.array([[0.1, 0.2, 0.3, 0.3, 0.2, 0.1]]), 3)[0] == slow_p(
        [0.1, 0.2, 0.3, 0.3, 0.2, 0.1], 3
    )
    assert permutation_p(np.array([[2.0, 1.0, 0.0, -1.0]]), 2)[0] == pytest.approx(1 / 6)


def test_exact_up_to_the_limit_and_drawn_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(1).normal(size=(2, 12))
    scores[:, :6] += 0.5
    exact = permutation_p(scores, 6)
    monkeypatch.setattr(association, "MOST_PARTITIONS", 924)
    assert permutation_p(scores, 6).tolist() == exact.tolist()
    monkeypatch.setattr(association, "MOST_PARTITIONS", 923)
    drawn = permutation_p(scores, 6)
    assert drawn.tolist() != exact.tolist()
    assert drawn == pytest.approx(exact, abs=0.08)
    assert (drawn * 923).round(6).tolist() == (drawn * 923).round().tolist()


def test_drawn_p_is_near_the_exact_one_and_seeded() -> None:
    scores = np.random.default_rng(2).normal(size=(1, 20))  # 184,756 partitions
    scores[0, :10] += 0.6
    exact = slow_p_fast(scores[0], 10)
    first, again = permutation_p(scores, 10, seed=3), permutation_p(scores, 10, seed=3)
    assert first[0] == again[0]
    assert first[0] != permutation_p(scores, 10, seed=4)[0]
    assert first[0] == pytest.approx(exact, abs=4 * math.sqrt(exact / 100_000))


def slow_p_fast(scores: np.ndarray, first: int) -> float:
    sums = [sum(members) for members in combinations(scores.tolist(), first)]
    return float(np.mean(np.array(sums) >= scores[:first].sum() - 1e-9))


@pytest.mark.parametrize("first", [3, 8])
def test_drawn_partitions_have_the_right_size_and_are_even(first: int) -> None:
    blocks = list(association._partitions(11, first, False, 0))
    members = np.concatenate(blocks)
    assert members.shape == (99_999, 11)
    assert (members.sum(1) == first).all()
    assert members.mean(0) == pytest.approx(np.full(11, first / 11), abs=0.01)


def test_drawn_p_is_never_zero_and_does_not_depend_on_the_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = np.random.default_rng(3).normal(size=(3, 60))
    scores[0, :30] += 50
    together = permutation_p(scores, 30)
    assert together[0] == 1e-5
    alone = [permutation_p(row[None], 30)[0] for row in scores]
    assert together.tolist() == pytest.approx(alone)
    monkeypatch.setattr(association, "_CELLS", 7000)
    assert permutation_p(scores, 30).tolist() == together.tolist()


def test_parametric_p_is_the_normal_tail_over_all_partitions() -> None:
    scores = np.random.default_rng(4).normal(size=9)
    sums = [2 * sum(members) - scores.sum() for members in combinations(scores.tolist(), 4)]
    observed = scores[:4].sum() - scores[4:].sum()
    expected = stats.norm.sf(observed, loc=np.mean(sums), scale=np.std(sums))
    assert parametric_p(scores, 4) == pytest.approx(expected)
    assert math.isnan(parametric_p(np.zeros(4), 2))


def test_resampled_effect_sizes_one_at_a_time() -> None:
    x, y = np.array([0.1, 0.5, 0.2]), np.array([0.4, 0.3])
    first, second = draws(3, key=(1,), count=40), draws(2, key=(2,), count=40)
    found = resampled_effect_sizes(x, y, first, second)
    slow = [effect_size(x[a], y[b]) for a, b in zip(first, second, strict=True)]
    assert found == pytest.approx(slow, nan_ok=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_embedding_of_tokens_only(side: str) -> None:
    hidden = torch.tensor([[[1.0], [2.0], [6.0]], [[4.0], [8.0], [float("nan")]]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    if side == "left":
        hidden, mask = hidden.flip(1), mask.flip(1)
    assert embedding_of(hidden, mask, "mean").flatten().tolist() == [3, 6]
    expected = [1, 4] if side == "left" else [6, 8]
    assert embedding_of(hidden, mask, "last").flatten().tolist() == expected


def test_half_precision_is_averaged_in_float32() -> None:
    hidden = torch.full((1, 1000, 1), 1.01, dtype=torch.bfloat16)
    found = embedding_of(hidden, torch.ones(1, 1000), "mean")
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(hidden[0, 0, 0]))


def test_draws_depend_on_key_and_size_alone() -> None:
    assert (draws(5, key=(1, 2), count=9) == draws(5, key=(1, 2), count=9)).all()
    assert (draws(5, key=(1, 2), count=9) != draws(5, key=(2, 1), count=9)).any()
    assert draws(5, count=9).shape == (9, 5)
    assert set(draws(3, count=99).flatten().tolist()) == {0, 1, 2}


def test_a_centred_interval_holds_the_figure() -> None:
    random = np.random.default_rng(0)
    replicates = np.abs(random.normal(0.02, 0.3, 4000))  # |d| near 0
    low, high = centred_interval(replicates, 0.02, low=0.0)
    assert low == 0
    assert 0.02 < high < 0.7
    shifted = random.normal(5, 1, 40_000)
    assert centred_interval(shifted, 2.0) == pytest.approx((2 - 1.96, 2 + 1.96), abs=0.05)
    with_nan = np.append(shifted, np.nan)
    assert centred_interval(with_nan, 2.0) == centred_interval(shifted, 2.0)
    assert spread(with_nan) == pytest.approx(1, abs=0.02)


def test_without_replicates_nothing_is_known() -> None:
    nothing = np.full(2, np.nan)
    assert all(map(math.isnan, (*centred_interval(nothing, 1.0), spread(nothing))))
    assert math.isnan(bootstrap_p(nothing, 1.0))


def test_bootstrap_p() -> None:
    random = np.random.default_rng(0)
    replicates = random.normal(2, 1, 20_000)
    assert bootstrap_p(replicates, 2.0) == pytest.approx(2 * stats.norm.sf(2), abs=0.01)
    assert bootstrap_p(replicates + 1, 2.0) == pytest.approx(bootstrap_p(replicates, 2.0), abs=1e-3)
    assert bootstrap_p(replicates + 40, 42.0) == pytest.approx(2 / 20_001)
    assert bootstrap_p(np.zeros(100), 0.0) == 1
