"""Padded batches, bucketed by length under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from biasdiff.data.encoding import Encoding
from biasdiff.functional.losses import IGNORED

Batch = dict[str, Tensor]
"""``input_ids``, ``attention_mask``, ``position_ids`` and ``labels``, each [n, t]."""


def make_batch(
    encodings: Sequence[Encoding],
    *,
    pad_id: int = 0,
    side: Literal["left", "right"] = "right",
    device: torch.device | str = "cpu",
) -> Batch:
    """Pad encodings to one length.

    Position ids are explicit and count real tokens from 0, because GPT-2 would otherwise number
    the padding on the left too.

    Args:
        encodings: At least one.
        pad_id: Any id of the vocabulary; padding is masked and carries no loss.
        side: Where the padding goes. No result depends on it.
        device: Where the tensors are put.
    """
    width = max(map(len, encodings))
    ids = torch.full((len(encodings), width), pad_id)
    mask = torch.zeros((len(encodings), width), dtype=torch.long)
    labels = torch.full((len(encodings), width), IGNORED)
    for row, encoding in enumerate(encodings):
        length = len(encoding)
        place = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, place] = torch.tensor(encoding.input_ids)
        labels[row, place] = torch.tensor(encoding.labels)
        mask[row, place] = 1
    # A label at the very first real position is predicted by padding under left padding.
    first = mask.argmax(1, keepdim=True)
    labels.scatter_(1, first, IGNORED)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def token_budget_batches(
    lengths: Sequence[int], *, max_tokens: int, max_examples: int | None = None
) -> list[list[int]]:
    """Group indices so that no padded batch exceeds a token budget.

    Similar lengths go together, the longest first, so that memory peaks at the start. An example
    longer than the budget makes a batch of its own. The grouping depends on the lengths alone.

    Args:
        lengths: Tokens of each example.
        max_tokens: Budget of examples x padded length.
        max_examples: Examples in a batch at most.
    """
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = not batches or (len(batches[-1]) + 1) * width > max_tokens
        if full or (max_examples is not None and len(batches[-1]) >= max_examples):
            batches.append([])
            width = max(lengths[index], 1)
        batches[-1].append(index)
    return batches
