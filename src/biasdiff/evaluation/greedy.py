"""Greedy continuations of many prompts, in batches padded on the left."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.errors import DataError, NonFiniteError
from biasdiff.evaluation.benchmark import Subject
from biasdiff.functional.statistics import Floats
from biasdiff.progress import task


@dataclass(frozen=True)
class Continuation:
    """What a model writes after a prompt.

    Attributes:
        tokens: New token ids, without the one that ended them.
        text: The same as text, special tokens left out.
        watched: log P(first new token) of the tokens that were asked for, [k].
    """

    tokens: list[int]
    text: str
    watched: Floats


def continue_greedily(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    watch: Sequence[int] = (),
    name: str = "prompts",
) -> list[Continuation]:
    """Continue every prompt with the most probable token, over and over.

    The loop is written out and takes nothing from the model's generation settings (sampling,
    repetition penalties), so that every model is asked alike. It ends at the tokenizer's EOS and at
    the model's own end tokens.

    Args:
        subject: The model.
        prompts: Token ids, start token included.
        max_new_tokens: New tokens at most.
        watch: Tokens whose probability as the first new one is wanted.
        name: Shown with the progress and in errors.

    Raises:
        DataError: If a prompt is empty, or leaves no room in the context.
        NonFiniteError: If a logit is NaN.
    """
    room = subject.max_length - max_new_tokens
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= room:
            raise DataError(
                f"{name}: prompt {number} has {len(prompt)} tokens",
                expected=f"1 to {room}, the context of {subject.max_length} less "
                f"{max_new_tokens} new tokens",
                remedy="use a model with a longer context, or leave this benchmark out",
            )
    found: list[Continuation | None] = [None] * len(prompts)
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    subject.model.eval()
    with task(name, len(prompts)) as progress, torch.inference_mode():
        for members in token_budget_batches(lengths, max_tokens=subject.max_tokens):
            chosen = [list(prompts[i]) for i in members]
            for index, continuation in zip(
                members, _batch(subject, chosen, max_new_tokens, watch, name), strict=True
            ):
                found[index] = continuation
            progress.advance(len(members))
    return [continuation for continuation in found if continuation is not None]


def _batch(
    subject: Subject,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    watch: Sequence[int],
    name: str,
) -> list[Continuation]:
    device = next(subject.model.parameters()).device
    batch = make_batch([Encoding(p, p) for p in prompts], side="left", device=device)
    ids, mask, positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
    ends = torch.tensor(sorted(end_tokens(subject)), dtype=torch.long, device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    known = _arguments(subject.model)
    memory = "cache" if "cache" in known else "past_key_values"
    # The logits of every position of a batch of prompts would fill gigabytes.
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    watched = np.empty((len(prompts), len(watch)))
    tokens: list[list[int]] = [[] for _ in prompts]
    cache = None
    for step in range(max_new_tokens):
        output = subject.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{memory: cache},
            **last_only,
        )
        logits = output.logits[:, -1].float()
        if logits.isnan().any():
            raise NonFiniteError(
                f"{name}: the next token's logits are NaN",
                expected="finite logits",
                remedy="check the model for NaN weights, or use float32",
            )
        if step == 0:
            watched = logits.log_softmax(-1)[:, list(watch)].double().cpu().numpy()
        best = logits.argmax(-1)
        ended = ended | torch.isin(best, ends)
        if ended.all():
            break
        for row, (token, over) in enumerate(zip(best.tolist(), ended.tolist(), strict=True)):
            if not over:
                tokens[row].append(token)
        cache = getattr(output, memory)
        ids, positions = best[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return [
        Continuation(new, subject.tokenizer.decode(new, skip_special_tokens=True), scores)
        for new, scores in zip(tokens, watched, strict=True)
    ]


def end_tokens(subject: Subject) -> set[int]:
    """Return the tokens that end a text: the tokenizer's EOS and those the model names itself."""
    settings = getattr(subject.model, "generation_config", None)
    own = getattr(settings, "eos_token_id", None)
    several = own if isinstance(own, list | tuple) else [own]
    return {int(t) for t in (subject.tokenizer.eos_token_id, *several) if t is not None}


def _arguments(model: Any) -> frozenset[str]:
    """Return the names of what a model's forward pass takes, those of the model inside an adapter.

    The memory of earlier tokens is ``past_key_values`` in early releases of transformers 5 and
    ``cache`` in later ones, which will drop the old name in 5.40.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(base.forward).parameters)
