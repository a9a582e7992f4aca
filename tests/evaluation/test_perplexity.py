from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch

from biasdiff.evaluation.perplexity import perplexity_metric, score_texts
from tiny_models import SENTENCES

Loader = Callable[..., tuple[Any, Any]]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_equal_to_transformers_loss_text_by_text(tiny: Loader, architecture: str) -> None:
    model, tokenizer = tiny(architecture)
    total, tokens = 0.0, 0
    for sentence in SENTENCES:
        ids = torch.tensor([[0, *tokenizer(sentence)["input_ids"]]])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    scores = score_texts(model, tokenizer, SENTENCES, max_tokens=90, max_length=64)
    metric = perplexity_metric(scores)
    assert metric.value == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert metric.n == len(SENTENCES)
    assert scores["tokens"].sum() == tokens
    assert metric.interval is not None
    assert metric.interval[0] < metric.value < metric.interval[1]


def test_long_texts_are_cut(tiny: Loader) -> None:
    model, tokenizer = tiny("llama")
    whole = score_texts(model, tokenizer, SENTENCES[:3], max_tokens=90, max_length=64)
    cut = score_texts(model, tokenizer, SENTENCES[:3], max_tokens=90, max_length=6)
    assert cut["tokens"].tolist() == [5, 5, 5]
    assert (cut["negative_log_likelihood"] < whole["negative_log_likelihood"]).all()


def test_tokens_weigh_alike_not_texts() -> None:
    scores = pd.DataFrame({"negative_log_likelihood": [2.0, 30.0], "tokens": [1, 9]})
    assert perplexity_metric(scores).value == pytest.approx(math.exp(3.2))


def test_without_tokens_it_is_nan() -> None:
    scores = pd.DataFrame({"negative_log_likelihood": [0.0], "tokens": [0]})
    metric = perplexity_metric(scores)
    assert math.isnan(metric.value)
    assert metric.to_json()["value"] is None
