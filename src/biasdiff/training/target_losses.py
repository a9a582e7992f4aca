"""Losses at target positions only: nothing else goes through the output layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from biasdiff.data.batching import Batch
from biasdiff.functional.losses import IGNORED, target_counts
from biasdiff.functional.output_layer import CHUNK_BYTES, linear_cross_entropy

Inputs = Mapping[str, Any]
"""What a model is called with, by name."""
Positions = tuple[Tensor, Tensor]
"""Rows and places, [m] each."""
_TOLERANCE = 1e-3
_IS_LINEAR: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def backward_example_losses(model: Any, batch: Batch, *, average: bool = True) -> Tensor:
    """Run forward and backward of Σ_i ℓ_i and return the losses ℓ_i, [n].

    ℓ_i is the mean over the example's target tokens (or their sum), so padding and the other
    examples of the batch do not change its gradient. Only target positions go through the output
    layer. Where that is a plain linear map and nothing follows it, loss and gradient come from
    `linear_cross_entropy`, without autograd; whether that is so is found out on a model's first
    batch.

    Args:
        model: Causal language model with something below its output layer that requires a gradient.
        batch: As `biasdiff.data.batching.make_batch` makes it.
        average: False for the sum over target tokens.
    """
    labels = batch["labels"]
    at, targets = target_positions(labels)
    rows = at[0]
    counts = target_counts(labels)
    scales = (1 / counts.double())[rows] if average else torch.ones_like(rows).double()
    inputs = model_inputs(batch)
    with torch.enable_grad():
        head = _output_layer(model)
        frozen = head is not None and not any(p.requires_grad for p in head.parameters())
        if frozen and _is_last(model, inputs, at):
            losses = _fused(model, inputs, at, targets, scales)
        else:
            losses = _selected(model, inputs, at, targets, scales)
    return torch.zeros(len(labels), dtype=losses.dtype, device=losses.device).index_add_(
        0, rows, losses * scales.to(losses.dtype)
    )


def target_positions(labels: Tensor) -> tuple[Positions, Tensor]:
    """Return row and place of what predicts each target of [n, t] labels, and the targets, [m]."""
    rows, places = labels[:, 1:].ne(IGNORED).nonzero(as_tuple=True)
    return (rows, places), labels[rows, places + 1]


def target_log_probs(model: Any, inputs: Inputs, at: Positions, targets: Tensor) -> Tensor:
    """Return log P(target | what is before) at some positions, [m], in float32 or better.

    Only these positions go through the output layer, in chunks, so that the logits of a large
    vocabulary are never together.

    Args:
        model: Causal language model.
        inputs: What it is called with.
        at: Rows and places, [m] each; the logits at place t predict place t + 1.
        targets: [m], token ids.
    """
    if _output_layer(model) is not None and _is_last(model, inputs, at):
        head, hidden = _output_layer(model), _hidden_states(model, inputs)[at]

        def logits_of(part: slice) -> Tensor:
            return nn.functional.linear(hidden[part], head.weight, head.bias)

        width = len(head.weight)
    else:
        logits = _logits_at(model, inputs, at)

        def logits_of(part: slice) -> Tensor:
            return logits[part]

        width = logits.shape[-1]
    found, size = [], max(1, CHUNK_BYTES // (4 * width))
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        own = logits_of(part)
        own = own if own.dtype == torch.float64 else own.float()
        found.append(own.gather(1, targets[part, None]).squeeze(1) - own.logsumexp(1))
    return torch.cat(found) if found else torch.empty(0)


def model_inputs(batch: Batch) -> Inputs:
    """Return what the model is called with.

    Under right padding no real token attends to padding and positions are as in a text alone, so
    neither mask nor positions are needed, and attention takes its causal way, which is faster.
    """
    keys = ["input_ids"]
    if not bool(batch["attention_mask"][:, 0].all()):
        keys += ["attention_mask", "position_ids"]
    return {key: batch[key] for key in keys} | {"use_cache": False}


def _hidden_states(model: Any, inputs: Inputs) -> Tensor:
    """Return what the output layer is applied to, [n, t, h]; it is applied to one place only."""
    found: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        found.append(hidden)
        return hidden[:, :1].detach()

    with _input_of(_output_layer(model), keep):
        model(**inputs)
    return found[0]


def _fused(model: Any, inputs: Inputs, at: Positions, targets: Tensor, scales: Tensor) -> Tensor:
    head, hidden = _output_layer(model), _hidden_states(model, inputs)
    with torch.no_grad():
        losses, gradients = linear_cross_entropy(
            hidden[at], head.weight, targets, scales, head.bias
        )
        upstream = torch.zeros_like(hidden)
        upstream[at] = gradients
    torch.autograd.backward(hidden, upstream)
    return losses


def _selected(model: Any, inputs: Inputs, at: Positions, targets: Tensor, scales: Tensor) -> Tensor:
    logits = _logits_at(model, inputs, at)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = nn.functional.cross_entropy(wide, targets, reduction="none")
    torch.autograd.backward((losses * scales.to(losses.dtype)).sum())
    return losses.detach()


def _logits_at(model: Any, inputs: Inputs, at: Positions) -> Tensor:
    """Return the model's logits at some positions, [m, vocabulary]."""
    head = _output_layer(model)
    if head is None:
        logits: Tensor = model(**inputs).logits
        return logits[at]
    with _input_of(head, lambda hidden: hidden[at][None]):
        return model(**inputs).logits[0]  # type: ignore[no-any-return]


def _output_layer(model: Any) -> Any:
    """Return the output layer if it is a plain linear map, without an adapter and unwatched."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    return head if type(head) is nn.Linear and not head._forward_hooks else None


def _is_last(model: Any, inputs: Inputs, at: Positions) -> bool:
    """Find out whether a model's logits are its output layer's and nothing else.

    Some scale or cap them. One trial for each output layer.
    """
    head = _output_layer(model)
    if head not in _IS_LINEAR:
        few = (at[0][:8], at[1][:8])
        found: list[Tensor] = []

        def keep(hidden: Tensor) -> Tensor:
            found.append(hidden[few])
            return hidden[few][None]

        with torch.no_grad(), _input_of(head, keep):
            logits = model(**inputs).logits[0]
            ours = nn.functional.linear(found[0], head.weight, head.bias)
        _IS_LINEAR[head] = torch.allclose(
            ours.float(), logits.float(), atol=_TOLERANCE, rtol=_TOLERANCE, equal_nan=True
        )
    return _IS_LINEAR[head]


@contextmanager
def _input_of(head: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the output layer be applied to something else than it is given."""
    handle = head.register_forward_pre_hook(lambda _, arguments: (change(arguments[0]),))
    try:
        yield
    finally:
        handle.remove()
