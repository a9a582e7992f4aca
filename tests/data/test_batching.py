from __future__ import annotations

import random

import pytest
import torch

from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.functional.losses import IGNORED, target_counts

LENGTH_SETS = {
    "one": [5],
    "equal": [7] * 20,
    "random": [random.Random(0).randint(1, 90) for _ in range(200)],
    "some empty": [0, 3, 0, 2],
    "none": [],
}


@pytest.mark.parametrize("lengths", LENGTH_SETS.values(), ids=LENGTH_SETS.keys())
@pytest.mark.parametrize("max_tokens", [1, 50, 100, 100_000])
@pytest.mark.parametrize("max_examples", [None, 1, 3])
def test_batches_respect_the_budget(
    lengths: list[int], max_tokens: int, max_examples: int | None
) -> None:
    batches = token_budget_batches(lengths, max_tokens=max_tokens, max_examples=max_examples)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens
        assert max_examples is None or len(batch) <= max_examples
    flat = [lengths[i] for b in batches for i in b]
    assert flat == sorted(lengths, reverse=True), "the longest come first"
    assert batches == token_budget_batches(
        lengths, max_tokens=max_tokens, max_examples=max_examples
    )


def test_batches_are_filled() -> None:
    assert token_budget_batches([10] * 10, max_tokens=40) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: str) -> None:
    encodings = [
        Encoding([0, 7, 8, 9], [IGNORED, 7, 8, 9]),
        Encoding([0, 5], [IGNORED, 5]),
    ]
    batch = make_batch(encodings, pad_id=3, side=side)  # type: ignore[arg-type]
    expected = {
        "right": {
            "input_ids": [[0, 7, 8, 9], [0, 5, 3, 3]],
            "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
            "position_ids": [[0, 1, 2, 3], [0, 1, 1, 1]],
            "labels": [[IGNORED, 7, 8, 9], [IGNORED, 5, IGNORED, IGNORED]],
        },
        "left": {
            "input_ids": [[0, 7, 8, 9], [3, 3, 0, 5]],
            "attention_mask": [[1, 1, 1, 1], [0, 0, 1, 1]],
            "position_ids": [[0, 1, 2, 3], [0, 0, 0, 1]],
            "labels": [[IGNORED, 7, 8, 9], [IGNORED, IGNORED, IGNORED, 5]],
        },
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected[side]
    assert all(tensor.dtype == torch.long for tensor in batch.values())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_predicts_nothing(side: str) -> None:
    # Chats may have a label in first place; under left padding it has padding before it.
    encodings = [Encoding([4, 5], [4, 5]), Encoding([4, 5, 6], [4, 5, 6])]
    batch = make_batch(encodings, side=side)  # type: ignore[arg-type]
    assert target_counts(batch["labels"]).tolist() == [e.targets for e in encodings] == [1, 2]
