from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from biasdiff.attribution.selection import select, selected_count
from biasdiff.errors import ConfigError, DataError


def frame(scores: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"e{i}" for i in range(len(scores))], "score": scores})


def chosen(table: pd.DataFrame) -> list[str]:
    return table.loc[table["selected"], "id"].tolist()


def test_top_takes_the_highest_scores_in_the_order_of_the_train_set() -> None:
    found = select(frame([0.1, 0.9, -0.5, 0.7]), top_k=2)
    assert found["id"].tolist() == ["e0", "e1", "e2", "e3"]
    assert chosen(found) == ["e1", "e3"]
    assert found["reason"].tolist() == [
        "influence rank 3 of 4, beyond the first 2",
        "influence rank 1 of 4, within the first 2",
        "influence rank 4 of 4, beyond the first 2",
        "influence rank 2 of 4, within the first 2",
    ]


def test_ties_go_to_the_earlier_row() -> None:
    assert chosen(select(frame([0.5, 0.9, 0.5, 0.5]), top_k=2)) == ["e0", "e1"]
    assert chosen(select(frame([0.0] * 5), top_k=3)) == ["e0", "e1", "e2"]


def test_random_draws_as_many_and_follows_the_seed() -> None:
    scores = frame(list(np.linspace(0, 1, 100)))
    draws = [chosen(select(scores, fraction=0.2, method="random", seed=s)) for s in (1, 1, 2)]
    assert [len(d) for d in draws] == [20, 20, 20]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != chosen(select(scores, fraction=0.2))
    reason = select(scores, top_k=1, method="random")["reason"].iloc[0]
    assert reason.startswith("random draw ")


@pytest.mark.parametrize(
    ("n", "fraction", "count"),
    [(10, 0.5, 5), (10, 1.0, 10), (10, 0.01, 1), (7, 0.3, 2), (1, 0.5, 1)],
)
def test_counts_of_fractions(n: int, fraction: float, count: int) -> None:
    assert selected_count(n, fraction=fraction) == count
    assert len(chosen(select(frame([0.0] * n), fraction=fraction))) == count


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"fraction is .*; expected a number in \(0, 1\]"):
        selected_count(10, fraction=fraction)


@pytest.mark.parametrize("top_k", [0, -3, 11])
def test_top_k_out_of_range(top_k: int) -> None:
    with pytest.raises(ConfigError, match=f"top_k is {top_k}; expected a number from 1 to 10"):
        selected_count(10, top_k=top_k)


@pytest.mark.parametrize("given", [{}, {"fraction": 0.5, "top_k": 3}])
def test_exactly_one_of_fraction_and_top_k(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected exactly one of them; give --fraction or --top"):
        selected_count(10, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["id", "score"])
def test_a_missing_column_is_named(column: str) -> None:
    with pytest.raises(DataError, match=r"the scores have the columns .*'id' and 'score'"):
        select(frame([1.0]).drop(columns=column), top_k=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_named(value: float) -> None:
    with pytest.raises(DataError, match="the score of e1 is not finite"):
        select(frame([0.0, value, 1.0]), top_k=1)
