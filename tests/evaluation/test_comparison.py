from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from biasdiff.errors import DataError
from biasdiff.evaluation.comparison import compare_pairs, compare_perplexity, excludes_zero
from biasdiff.results import Metric


def pairs(margins: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row": range(len(margins)),
            "margin": margins,
            "margin_per_token": [m / 10 for m in margins],
        }
    )


def texts(losses: list[float], tokens: list[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {"row": range(len(losses)), "negative_log_likelihood": losses, "tokens": tokens}
    )


def test_differences_by_hand() -> None:
    before, after = pairs([2.0, 1.0, -1.0, 0.0]), pairs([1.0, -1.0, -1.0, 1.0])
    found = compare_pairs(after, before)
    assert found["margin"].value == pytest.approx(-0.5)
    assert found["margin_per_token"].value == pytest.approx(-0.05)
    assert found["metric"].value == pytest.approx(0.0)  # one lost, one gained
    assert found["margin"].n == 4
    assert found["margin"].standard_error == pytest.approx(
        np.std([-1, -2, 0, 1], ddof=1) / math.sqrt(4)
    )


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 200)
    found = compare_pairs(pairs(list(base - 0.5 + rng.normal(0, 0.1, 200))), pairs(list(base)))
    assert found["margin"].interval == pytest.approx((-0.5, -0.5), abs=0.05)
    assert excludes_zero(found["margin"])


def test_ratio_of_perplexities() -> None:
    before, after = texts([10.0, 20.0], [5, 10]), texts([11.0, 22.0], [5, 10])
    found = compare_perplexity(after, before)
    assert found.value == pytest.approx(math.exp(33 / 15) / math.exp(30 / 15))
    assert found.interval == pytest.approx((math.exp(0.2), math.exp(0.2)))
    assert compare_perplexity(before, before).value == 1.0


@pytest.mark.parametrize("rows", [[0, 1], [0, 2, 1], [0, 1, 5]])
def test_other_examples_are_refused(rows: list[int]) -> None:
    before = pairs([1.0, 2.0, 3.0])
    after = pairs([1.0] * len(rows))
    after["row"] = rows
    with pytest.raises(DataError, match=rf"hold {len(rows)} and 3 examples, or other rows; expect"):
        compare_pairs(after, before)


def test_other_texts_are_refused() -> None:
    with pytest.raises(DataError, match="evaluate both models on the same files"):
        compare_perplexity(texts([1.0], [1]), texts([1.0, 2.0], [1, 1]))


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.1, 0.2), True),
        ((-2.0, -1.0), True),
        ((-0.1, 0.1), False),
        ((0.0, 1.0), False),
        ((math.nan, math.nan), False),
        (None, False),
    ],
)
def test_excludes_zero(interval: tuple[float, float] | None, expected: bool) -> None:
    assert excludes_zero(Metric(0.0, 1, "none", interval=interval)) is expected
