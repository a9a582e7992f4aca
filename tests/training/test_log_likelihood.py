from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from biasdiff.data.encoding import Encoding
from biasdiff.errors import NonFiniteError
from biasdiff.training.log_likelihood import log_likelihoods
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
