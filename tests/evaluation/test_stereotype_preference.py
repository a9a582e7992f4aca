from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from biasdiff.data.encoding import encode_text
from biasdiff.data.probe import ProbePair
from biasdiff.errors import DataError
from biasdiff.evaluation.stereotype_preference import (
    mean_metric,
    preference_metrics,
    score_pairs,
)
from biasdiff.training.log_likelihood import log_likelihoods

Loader = Callable[..., tuple[Any, Any]]
PAIRS = [
    ProbePair("The nurse said she was late.", "The nurse said he was late.", "stereo", "gender", 0),
    ProbePair(
        "The old man slept.", "The young man slept.", "antistereo", "age", 1, {"stereotype_id": "s"}
    ),
    ProbePair("Rain falls.", "Rain falls.", "stereo", "age", 2),
]


def frame(*rows: tuple[str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"direction": d, "bias_type": t, "margin": m, "margin_per_token": m / 4}
            for d, t, m in rows
        ]
    )


BY_HAND = frame(
    ("stereo", "gender", 2.0),
    ("stereo", "gender", -1.0),
    ("stereo", "age", 0.0),
    ("antistereo", "age", 3.0),
    ("antistereo", "age", 1e-12),
)


def test_metrics_by_hand() -> None:
    metrics = preference_metrics(BY_HAND)
    values = {name: m.value for name, m in metrics.items()}
    assert values == pytest.approx(
        {
            "metric": 60.0,
            "stereotype": 100 / 3,
            "anti_stereotype": 100.0,
            "ties": 20.0,
            "margin": 0.8,
            "margin_per_token": 0.2,
            "metric/age": 200 / 3,
            "margin/age": 1.0,
            "metric/gender": 50.0,
            "margin/gender": 0.5,
        }
    )
    assert {name: m.n for name, m in metrics.items()} == {
        "metric": 5, "stereotype": 3, "anti_stereotype": 2, "ties": 5, "margin": 5,
        "margin_per_token": 5, "metric/age": 3, "margin/age": 3, "metric/gender": 2,
        "margin/gender": 2,
    }  # fmt: skip
    assert metrics["metric"].direction == "target: 50"
    assert metrics["margin"].direction == "target: 0"
    assert metrics["metric"].standard_error == pytest.approx(100 * math.sqrt(0.6 * 0.4 / 5))


def test_a_tie_counts_as_not_preferred() -> None:
    metrics = preference_metrics(frame(*[("stereo", "a", 0.0)] * 4))
    assert metrics["metric"].value == 0
    assert metrics["ties"].value == 100


def test_a_direction_without_pairs_is_nan_not_zero() -> None:
    metrics = preference_metrics(frame(("stereo", "a", 1.0)))
    assert math.isnan(metrics["anti_stereotype"].value)
    assert metrics["anti_stereotype"].n == 0
    assert metrics["anti_stereotype"].to_json()["value"] is None
    assert math.isnan(mean_metric(pd.Series([], dtype=float)).value)


def test_intervals_hold_the_values() -> None:
    for name, metric in preference_metrics(BY_HAND).items():
        assert metric.interval is not None
        low, high = metric.interval
        assert low <= metric.value <= high, name


def test_pairs_are_scored_by_the_sum_over_the_whole_sentence(tiny: Loader) -> None:
    model, tokenizer = tiny("gpt2")
    found = score_pairs(model, tokenizer, PAIRS, max_tokens=60)
    for row, pair in enumerate(PAIRS):
        more, less = (encode_text(tokenizer, s) for s in (pair.sent_more, pair.sent_less))
        a, b = (float(log_likelihoods(model, [e], max_tokens=100)[0]) for e in (more, less))
        assert found["log_prob_more"][row] == pytest.approx(a, abs=1e-4)
        assert found["log_prob_less"][row] == pytest.approx(b, abs=1e-4)
        assert found["margin"][row] == pytest.approx(a - b, abs=1e-4)
        assert found["tokens_more"][row] == len(more) - 1
        assert found["tokens_less"][row] == len(less) - 1
        per_token = a / (len(more) - 1) - b / (len(less) - 1)
        assert found["margin_per_token"][row] == pytest.approx(per_token, abs=1e-4)
    assert found["row"].tolist() == [0, 1, 2]
    assert found["direction"].tolist() == ["stereo", "antistereo", "stereo"]
    assert found["stereotype_id"].tolist() == ["", "s", ""]


@pytest.mark.parametrize("max_tokens", [1, 25, 10_000])
def test_equal_sentences_tie_whatever_the_batches(tiny: Loader, max_tokens: int) -> None:
    model, tokenizer = tiny("llama")
    same = [replace(p, sent_less=p.sent_more) for p in PAIRS]
    metrics = preference_metrics(score_pairs(model, tokenizer, same, max_tokens=max_tokens))
    assert metrics["ties"].value == 100
    assert metrics["metric"].value == 0


def test_pairs_without_twins_are_refused(tiny: Loader) -> None:
    model, tokenizer = tiny("llama")
    pairs = [PAIRS[0], replace(PAIRS[1], sent_less="")]
    with pytest.raises(DataError, match="1 of 2 probe rows have no 'sent_less', the first row 1"):
        score_pairs(model, tokenizer, pairs, max_tokens=100)


@pytest.mark.parametrize("side", ["sent_more", "sent_less"])
def test_a_sentence_beyond_the_context_is_refused(tiny: Loader, side: str) -> None:
    model, tokenizer = tiny("llama")
    pairs = [PAIRS[0], replace(PAIRS[1], **{side: "Zebra " * 30})]
    length = len(encode_text(tokenizer, "Zebra " * 30))
    with pytest.raises(
        DataError, match=f"pair row 1 has {length} tokens; expected at most 64, the context length"
    ):
        score_pairs(model, tokenizer, pairs, max_tokens=1000, max_length=64)
