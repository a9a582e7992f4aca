from __future__ import annotations

from collections import Counter

import pytest

from biasdiff.data.draws import SIZES, divide, shipped_draw, shipped_draws
from biasdiff.data.near_duplicates import near_duplicates
from biasdiff.data.probe import ProbePair
from biasdiff.data.shipped_sets import shipped_pairs
from biasdiff.data.stratification import equal_quotas, proportional_quotas
from biasdiff.errors import DataError


def test_sizes_and_disjoint_stereotypes() -> None:
    draws = vars(shipped_draws())
    assert {name: len(draws[name]) for name in SIZES} == SIZES
    stereotypes = [{pair.stereotype_id for pair in draw} for draw in draws.values()]
    for i, one in enumerate(stereotypes):
        for other in stereotypes[:i]:
            assert not one & other
    ids = [pair.extra["id"] for draw in draws.values() for pair in draw]
    assert len(ids) == len(set(ids))
    assert len(shipped_pairs()) - len(ids) <= 3 * 9 * 3  # of the last stereotype of each draw


def test_every_draw_is_stratified_by_type() -> None:
    pairs = shipped_pairs()
    whole = Counter(pair.bias_type for pair in pairs)
    for name, size in SIZES.items():
        found = Counter(pair.bias_type for pair in shipped_draw(name))
        for bias_type, count in whole.items():
            assert abs(found[bias_type] - size * count / len(pairs)) < 1


def test_draws_share_no_near_duplicate() -> None:
    draws = vars(shipped_draws())
    texts = {n: [t for p in d for t in (p.sent_more, p.sent_less)] for n, d in draws.items()}
    for name in SIZES:
        for other in texts:
            if other != name:
                assert not list(near_duplicates(texts[name], texts[other]))


def test_the_same_seed_gives_the_same_draws() -> None:
    pairs = shipped_pairs()
    sizes = {"reference": 90, "validation": 40, "test": 40}
    assert divide(pairs, sizes, seed=3) == divide(pairs, sizes, seed=3)
    assert divide(pairs, sizes, seed=3) != divide(pairs, sizes, seed=4)


def test_an_unknown_draw_is_refused() -> None:
    with pytest.raises(DataError, match=r"is called 'refrence' \(did you mean 'reference'\?\)"):
        shipped_draw("refrence")


def test_too_few_pairs() -> None:
    pairs = [ProbePair("a", "b", "stereo", "age", i, {"stereotype_id": f"s{i}"}) for i in range(5)]
    with pytest.raises(DataError, match="only 2 pairs of 'age' are left for the test draw; expec"):
        divide(pairs, {"reference": 2, "validation": 1, "test": 3}, seed=0)


def test_a_stereotype_that_does_not_fit_is_cut_and_goes_nowhere_else() -> None:
    pairs = [
        ProbePair("a", "b", "stereo", "age", i, {"stereotype_id": f"s{i // 3}"}) for i in range(9)
    ]
    draws = divide(pairs, {"reference": 4, "validation": 0, "test": 0}, seed=0)
    assert len(draws.reference) == 4
    assert len(draws.rest) == 3
    assert not {p.stereotype_id for p in draws.reference} & {p.stereotype_id for p in draws.rest}


def test_quotas() -> None:
    assert proportional_quotas({"a": 6, "b": 3, "c": 1}, 5) == {"a": 3, "b": 2, "c": 0}
    assert proportional_quotas({"a": 1, "b": 1}, 9) == {"a": 1, "b": 1}
    assert equal_quotas({"a": 6, "b": 1, "c": 9}, 9) == {"a": 4, "b": 1, "c": 4}
    assert equal_quotas({"a": 1}, 9) == {"a": 1}
