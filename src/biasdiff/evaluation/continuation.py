"""Continuations of many prompts, in batches padded on the left; greedy, or drawn by the caller."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.errors import DataError, NonFiniteError
from biasdiff.evaluation.benchmark import Subject
from biasdiff.functional.statistics import Floats
from biasdiff.functional.token_alignment import shared_prefix
from biasdiff.progress import task
from biasdiff.training.token_scores import WORTH_SHARING

DECODING = 4
"""Times the token budget that a batch may have: a step reads all weights for one token a prompt, so
large batches pay, and keeps the logits of that token only."""
TOLERANCE = 2e-3
Choose = Callable[[Sequence[int], int, Tensor], Tensor]
"""From numbers of prompts, the step (0 for the first new token) and logits, [n, vocabulary], to a
token for each, [n]."""


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


def most_probable(members: Sequence[int], step: int, logits: Tensor) -> Tensor:
    """Choose greedily."""
    return logits.argmax(-1)


def continue_prompts(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    choose: Choose = most_probable,
    watch: Sequence[int] = (),
    max_prompts: int | None = None,
    name: str = "prompts",
) -> list[Continuation]:
    """Continue every prompt token by token, greedily by default.

    What all prompts begin with is computed once a batch, where a trial shows that the model
    continues from it as it should. The loop is written out and takes nothing from the model's
    generation settings (sampling, repetition penalties), so that every model is asked alike. It
    ends at the tokenizer's EOS and at the model's own end tokens.

    Args:
        subject: The model.
        prompts: Token ids, start token included.
        max_new_tokens: New tokens at most.
        choose: How the next token is chosen.
        watch: Tokens whose probability as the first new one is wanted.
        max_prompts: Prompts in a batch at most.
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
    start = _shared_beginning(prompts)
    subject.model.eval()
    longest = max(map(len, prompts), default=0) + max_new_tokens
    if start and (_window(subject) < longest or not _agrees(subject, prompts, start)):
        start = 0
    lengths = [len(prompt) - start + max_new_tokens for prompt in prompts]
    found: list[Continuation | None] = [None] * len(prompts)
    with task(name, len(prompts)) as progress, torch.inference_mode():
        for members in token_budget_batches(
            lengths, max_tokens=DECODING * subject.max_tokens, max_examples=max_prompts
        ):
            chosen = [list(prompts[i]) for i in members]
            beginning = _begin(subject, chosen, start)
            batch = _continue(subject, beginning, members, max_new_tokens, choose, watch, name)
            for index, continuation in zip(members, batch, strict=True):
                found[index] = continuation
            progress.advance(len(members))
    return [continuation for continuation in found if continuation is not None]


def _shared_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, 0 where sharing them would save little.

    Every prompt keeps a token of its own, since its last one is what predicts.
    """
    if len(prompts) < 2:
        return 0
    ordered = sorted(map(list, prompts))  # what the first and last share, all share
    shared = min(shared_prefix(ordered[0], ordered[-1]), min(map(len, prompts)) - 1)
    saved = shared * (len(prompts) - 1)
    return shared if saved >= WORTH_SHARING * sum(map(len, prompts)) else 0


@dataclass(frozen=True)
class _State:
    """What a step is given: new tokens, a mask of all so far, and the memory of earlier ones."""

    ids: Tensor
    mask: Tensor
    positions: Tensor
    memory: Any


def _begin(subject: Subject, prompts: Sequence[list[int]], shared: int) -> _State:
    device = next(subject.model.parameters()).device
    rests = [prompt[shared:] for prompt in prompts]
    batch = make_batch([Encoding(r, r) for r in rests], side="left", device=device)
    ids, mask, positions = batch["input_ids"], batch["attention_mask"], batch["position_ids"]
    if not shared:
        return _State(ids, mask, positions, None)
    beginning = torch.tensor([prompts[0][:shared]], device=device)
    places = torch.arange(shared, device=device)[None]
    memory = _step(subject, _State(beginning, torch.ones_like(beginning), places, None))[1]
    memory.batch_repeat_interleave(len(prompts))
    mask = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)
    return _State(ids, mask, positions + shared, memory)


def _window(subject: Subject) -> float:
    """Return how far back attention looks: in the memory it would count padding, too."""
    window = getattr(subject.model.config.get_text_config(), "sliding_window", None)
    return float("inf") if window is None else float(window)


@torch.inference_mode()
def _agrees(subject: Subject, prompts: Sequence[Sequence[int]], shared: int) -> bool:
    """Find out whether a model continues from a memory of the shared beginning as from the whole.

    One that keeps another kind of memory, or makes positions in a way of its own, does not. The
    longest and the shortest prompt are tried, since these are padded most.
    """
    by_length = sorted(prompts, key=len)
    chosen = [list(by_length[-1]), list(by_length[0])]
    try:
        ours = _step(subject, _begin(subject, chosen, shared))[0].log_softmax(-1)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
    plain = _step(subject, _begin(subject, chosen, 0))[0].log_softmax(-1)
    return torch.allclose(ours, plain, atol=TOLERANCE, rtol=TOLERANCE, equal_nan=True)


def _step(subject: Subject, at: _State) -> tuple[Tensor, Any]:
    """Return the logits of the next token, [n, vocabulary], and the memory."""
    known = _arguments(subject.model)
    memory = "cache" if "cache" in known else "past_key_values"
    # The logits of every position of a batch of prompts would fill gigabytes.
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    output = subject.model(
        input_ids=at.ids,
        attention_mask=at.mask,
        position_ids=at.positions,
        use_cache=True,
        **{memory: at.memory},
        **last_only,
    )
    return output.logits[:, -1].float(), getattr(output, memory)


def _continue(
    subject: Subject,
    at: _State,
    members: Sequence[int],
    max_new_tokens: int,
    choose: Choose,
    watch: Sequence[int],
    name: str,
) -> list[Continuation]:
    n, device = len(members), at.ids.device
    ends = torch.tensor(sorted(end_tokens(subject)), dtype=torch.long, device=device)
    ended = torch.zeros(n, dtype=torch.bool, device=device)
    watched = np.empty((n, len(watch)))
    tokens: list[list[int]] = [[] for _ in members]
    positions = at.positions
    for step in range(max_new_tokens):
        logits, memory = _step(subject, at)
        if logits.isnan().any():
            raise NonFiniteError(
                f"{name}: the next token's logits are NaN",
                expected="finite logits",
                remedy="check the model for NaN weights, or use float32",
            )
        if step == 0:
            watched = logits.log_softmax(-1)[:, list(watch)].double().cpu().numpy()
        new = choose(members, step, logits).to(device)
        ended = ended | torch.isin(new, ends)
        if ended.all():
            break
        for row, (token, over) in enumerate(zip(new.tolist(), ended.tolist(), strict=True)):
            if not over:
                tokens[row].append(token)
        mask = torch.cat([at.mask, at.mask.new_ones(n, 1)], dim=1)
        positions = positions[:, -1:] + 1
        at = _State(new[:, None], mask, positions, memory)
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
