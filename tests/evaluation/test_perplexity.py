from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from corpus_fixtures import write_corpora

from biasdiff.data.encoding import Encoding, encode_text
from biasdiff.data.sources.finding import DATA_DIR
from biasdiff.errors import DataError
from biasdiff.evaluation.benchmark import Inputs, Subject
from biasdiff.evaluation.perplexity import (
    WIKITEXT2,
    compare_perplexity,
    perplexity_metrics,
    score_texts,
    windows,
)
from biasdiff.functional.losses import IGNORED
from tiny_models import SENTENCES

Loader = Callable[..., tuple[Any, Any]]


def subject(loaded: tuple[Any, Any], *, max_length: int = 64) -> Subject:
    return Subject(*loaded, max_length, 90)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_equal_to_transformers_loss_text_by_text(tiny: Loader, architecture: str) -> None:
    model, tokenizer = tiny(architecture)
    total, tokens = 0.0, 0
    for sentence in SENTENCES:
        ids = torch.tensor([[0, *tokenizer(sentence)["input_ids"]]])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    scores = score_texts(subject((model, tokenizer)), SENTENCES)
    found = perplexity_metrics(scores)
    metric = found["perplexity"]
    assert metric.value == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert metric.n == len(SENTENCES)
    assert scores["tokens"].sum() == tokens
    assert metric.interval is not None
    assert metric.interval[0] < metric.value < metric.interval[1]
    size = sum(len(sentence.encode()) for sentence in SENTENCES)
    assert found["perplexity_per_byte"].value == pytest.approx(math.exp(total / size), rel=1e-5)


def test_every_target_is_in_one_window_with_half_a_context_before_it() -> None:
    encoding = Encoding(list(range(100, 137)), [IGNORED, *range(101, 137)])
    found = windows(encoding, 10)
    assert all(len(window) <= 10 for window in found)
    assert [t for w in found for t in w.labels if t != IGNORED] == list(range(101, 137))
    for window in found[1:]:
        first = next(i for i, label in enumerate(window.labels) if label != IGNORED)
        assert first >= 5
    assert windows(encoding, 37) == [encoding]


@pytest.mark.parametrize("max_length", [6, 9, 12])
def test_long_texts_are_scored_by_sliding_windows(tiny: Loader, max_length: int) -> None:
    model, tokenizer = tiny("llama")
    encoding = encode_text(tokenizer, SENTENCES[0])
    expected = 0.0
    for window in windows(encoding, max_length):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([window.input_ids])).logits[0].log_softmax(-1)
        expected -= sum(
            float(logits[i - 1, label]) for i, label in enumerate(window.labels) if label != IGNORED
        )
    scores = score_texts(subject((model, tokenizer), max_length=max_length), SENTENCES[:1])
    assert scores["negative_log_likelihood"][0] == pytest.approx(expected, abs=1e-3)
    assert scores["tokens"][0] == len(encoding) - 1


def test_a_budget_of_tokens_ends_before_the_text_that_exceeds_it(tiny: Loader) -> None:
    loaded = tiny("gpt2")
    whole = score_texts(subject(loaded), SENTENCES)
    budget = int(whole["tokens"][:4].sum())
    assert len(score_texts(subject(loaded), SENTENCES, max_tokens=budget)) == 4
    assert len(score_texts(subject(loaded), SENTENCES, max_tokens=budget - 1)) == 3
    assert len(score_texts(subject(loaded), SENTENCES, max_tokens=1)) == 1


def texts(losses: list[float], tokens: list[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row": range(len(losses)),
            "negative_log_likelihood": losses,
            "tokens": tokens,
            "bytes": [5 * t for t in tokens],
        }
    )


def test_tokens_weigh_alike_not_texts() -> None:
    found = perplexity_metrics(texts([2.0, 30.0], [1, 9]))
    assert found["perplexity"].value == pytest.approx(math.exp(3.2))
    assert found["perplexity_per_byte"].value == pytest.approx(math.exp(0.64))


def test_without_tokens_it_is_nan() -> None:
    metric = perplexity_metrics(texts([0.0], [0]))["perplexity"]
    assert math.isnan(metric.value)
    assert metric.to_json()["value"] is None


def test_ratio_of_perplexities() -> None:
    before, after = texts([10.0, 20.0], [5, 10]), texts([11.0, 22.0], [5, 10])
    found = compare_perplexity(after, before)["perplexity_ratio"]
    assert found.value == pytest.approx(math.exp(33 / 15) / math.exp(30 / 15))
    assert found.interval == pytest.approx((math.exp(0.2), math.exp(0.2)))
    assert compare_perplexity(before, before)["perplexity_ratio"].value == 1.0
    with pytest.raises(DataError, match="evaluate both models on the same files"):
        compare_perplexity(texts([1.0], [1]), before)


def test_wikitext(tiny: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_DIR, str(write_corpora(tmp_path / "data")))
    frame = WIKITEXT2.score(subject(tiny("llama")), Inputs())
    assert len(frame) == 4
    assert frame["group"].tolist() == ["valid-2", "valid-2", "test-2", "test-2"]
    assert WIKITEXT2.aggregate(frame)["perplexity"].n == 4
    assert set(WIKITEXT2.files({})) == {"wikitext2/wiki.valid.tokens", "wikitext2/wiki.test.tokens"}
