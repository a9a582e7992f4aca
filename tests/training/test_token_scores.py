from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from biasdiff.data.encoding import Encoding, encode_text
from biasdiff.errors import NonFiniteError
from biasdiff.training.token_scores import log_likelihoods, score_token_pairs
from tiny_models import ARCHITECTURES, SENTENCES

Loader = Callable[..., tuple[Any, Any]]


def manual(model: Any, tokenizer: Any, sentence: str) -> float:
    """Sum log-probabilities of one sentence word by word, the first given the start token."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = [start, *tokenizer(sentence, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(log_probs[t, token]) for t, token in enumerate(ids[1:]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_equal_to_one_sentence_at_a_time(
    tiny: Loader, encodings: list[Encoding], architecture: str, max_tokens: int
) -> None:
    model, tokenizer = tiny(architecture)
    found = log_likelihoods(model, encodings, max_tokens=max_tokens)
    expected = [manual(model, tokenizer, sentence) for sentence in SENTENCES]
    assert found == pytest.approx(expected, abs=1e-4)
    assert found.dtype == np.float64


def test_the_order_does_not_matter(tiny: Loader, encodings: list[Encoding]) -> None:
    model, _ = tiny("gpt2")
    order = [3, 9, 0, 7, 1, 8, 2, 6, 4, 5]
    found = log_likelihoods(model, [encodings[i] for i in order], max_tokens=70)
    assert found == pytest.approx(log_likelihoods(model, encodings, max_tokens=70)[order], abs=1e-4)


def test_dropout_is_off(adapted: Loader, encodings: list[Encoding]) -> None:
    model, _ = adapted("llama", dropout=0.5)
    model.train()
    a, b = (log_likelihoods(model, encodings, max_tokens=500) for _ in range(2))
    assert (a == b).all()


def test_without_bos_texts_are_given_eos(
    tiny_folder: Callable[..., Any],
) -> None:
    from tiny_models import encode_sentences, load_tiny

    model, tokenizer = load_tiny(tiny_folder("llama", bos=False))
    assert tokenizer.bos_token_id is None
    found = log_likelihoods(model, encode_sentences(tokenizer), max_tokens=100)
    assert found == pytest.approx([manual(model, tokenizer, s) for s in SENTENCES], abs=1e-4)


def test_rows_that_are_not_finite_are_named(tiny: Loader, encodings: list[Encoding]) -> None:
    model, _ = tiny("llama")
    used = {token for e in encodings for token in e.input_ids}
    token = next(i for i in range(2, 320) if i not in used)
    model.get_input_embeddings().weight.data[token] = float("nan")
    alien = Encoding([0, 5, token, 6], [-100, 5, token, 6])
    with pytest.raises(
        NonFiniteError, match="log-likelihood of 1 texts is not finite, first in row 4"
    ):
        log_likelihoods(model, [*encodings[:4], alien], max_tokens=100)


PAIRS = [
    ("The old man lost his keys again.", "The young man lost his keys again."),
    ("Women cannot park.", "Men cannot park."),
    ("He said that the nurse was a woman.", "He said that the nurse was a man, really."),
    ("He said", "He said that"),
    ("Rain falls.", "Rain falls."),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_shared_beginnings_change_no_score(
    tiny: Loader, architecture: str, max_tokens: int
) -> None:
    model, tokenizer = tiny(architecture)
    pairs = [(encode_text(tokenizer, a), encode_text(tokenizer, b)) for a, b in PAIRS]
    plain = score_token_pairs(model, pairs, max_tokens=max_tokens, share_prefixes=False)
    shared = score_token_pairs(model, pairs, max_tokens=max_tokens)
    for (a, b), (c, d), (left, right) in zip(plain, shared, pairs, strict=True):
        assert c == pytest.approx(a, abs=1e-4)
        assert d == pytest.approx(b, abs=1e-4)
        assert (len(c), len(d)) == (len(left) - 1, len(right) - 1)


def test_a_model_that_ignores_the_mask_is_scored_plainly(tiny: Loader) -> None:
    model, tokenizer = tiny("llama")
    pairs = [(encode_text(tokenizer, a), encode_text(tokenizer, b)) for a, b in PAIRS]
    plain = score_token_pairs(model, pairs, max_tokens=60, share_prefixes=False)
    forward = model.forward

    def deaf(*args: Any, **keywords: Any) -> Any:
        if "attention_mask" in keywords and keywords["attention_mask"].ndim == 4:
            keywords["attention_mask"] = None
        return forward(*args, **keywords)

    model.forward = deaf
    for (a, b), (c, d) in zip(plain, score_token_pairs(model, pairs, max_tokens=60), strict=True):
        assert c == pytest.approx(a, abs=1e-4)
        assert d == pytest.approx(b, abs=1e-4)


def test_a_model_that_cannot_take_the_mask_is_scored_plainly(tiny: Loader) -> None:
    model, tokenizer = tiny("gpt2")
    pairs = [(encode_text(tokenizer, a), encode_text(tokenizer, b)) for a, b in PAIRS]
    plain = score_token_pairs(model, pairs, max_tokens=60, share_prefixes=False)
    forward = model.forward

    def strict(*args: Any, **keywords: Any) -> Any:
        if "attention_mask" in keywords and keywords["attention_mask"].ndim == 4:
            raise ValueError("attention_mask must have two dimensions")
        return forward(*args, **keywords)

    model.forward = strict
    found = score_token_pairs(model, pairs, max_tokens=60)
    assert found[0][0] == pytest.approx(plain[0][0])


def test_the_shared_pass_is_used_and_cheaper(tiny: Loader) -> None:
    model, tokenizer = tiny("llama")
    pairs = [(encode_text(tokenizer, a), encode_text(tokenizer, b)) for a, b in PAIRS[2:3] * 40]
    seen = {"tokens": 0, "masks": 0}
    forward = model.forward

    def counting(*args: Any, **keywords: Any) -> Any:
        seen["tokens"] += keywords["input_ids"].numel()
        seen["masks"] += "attention_mask" in keywords and keywords["attention_mask"].ndim == 4
        return forward(*args, **keywords)

    model.forward = counting
    score_token_pairs(model, pairs, max_tokens=90, share_prefixes=False)
    plain, seen["tokens"] = seen["tokens"], 0
    score_token_pairs(model, pairs, max_tokens=90)
    assert seen["masks"] > 0
    assert seen["tokens"] < plain
