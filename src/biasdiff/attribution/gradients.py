"""Per-example gradients of whole batches at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from biasdiff.attribution.parameters import ChosenParameters, WatchedMap, lora_maps
from biasdiff.data.batching import Batch
from biasdiff.functional.influence import outer_product_gradients
from biasdiff.training.target_losses import backward_example_losses

Consumer = Callable[[str, Tensor], None]
"""Takes a parameter's saved name and its gradients [n, d], one example (or group) per row."""


def batch_gradients(
    model: Any,
    batch: Batch,
    consume: Consumer,
    *,
    parameters: ChosenParameters | None = None,
    group: int = 1,
    average: bool = True,
) -> Tensor:
    """Hand the gradients of a batch to ``consume``, parameter by parameter; return the losses [n].

    Args:
        model: The model; evaluated without dropout.
        batch: n examples. Where ``parameters`` are not of linear maps alone, all their gradients
            are held together: one row at a time is what memory asks for.
        consume: Called once for each parameter. It must not keep the tensor if memory matters.
        parameters: Which; the adapter's by default.
        group: Examples in a row: the mean of the gradients of this many neighbours.
        average: Whether an example's loss is the mean over its target tokens, or their sum.
    """
    chosen = lora_maps(model) if parameters is None else parameters
    if not chosen.others:
        with per_example_gradients(model, consume, parameters=chosen, group=group):
            return backward_example_losses(model, batch, average=average)
    named = _parameters_of(chosen)
    losses: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {name: [] for name in named}
    with frozen(model):
        for parameter in named.values():
            parameter.requires_grad_(True)
        for start in range(0, len(batch["input_ids"]), group):
            part = {key: value[start : start + group] for key, value in batch.items()}
            losses.append(backward_example_losses(model, part, average=average))
            for name, parameter in named.items():
                gradient = parameter.grad
                if gradient is None:  # an expert that no token was sent to
                    gradient = torch.zeros_like(parameter)
                rows[name].append(gradient.flatten() / len(part["input_ids"]))
                parameter.grad = None
    for name, found in rows.items():
        consume(name, torch.stack(found))
    return torch.cat(losses)


def _parameters_of(chosen: ChosenParameters) -> dict[str, nn.Parameter]:
    found: dict[str, nn.Parameter] = dict(chosen.others)
    for watched in chosen.maps:
        found[watched.name] = getattr(
            watched.module, "bias" if watched.kind == "bias" else "weight"
        )
    return found


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switch off every parameter's own gradient, and training mode, for the duration."""
    was_training = model.training
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    model.eval()
    try:
        yield
    finally:
        for parameter, needed in flags:
            parameter.requires_grad_(needed)
        model.train(was_training)


@contextmanager
def token_gradients(
    model: nn.Module,
    maps: Iterable[WatchedMap],
    consume: Callable[[WatchedMap, Tensor, Tensor], None],
) -> Iterator[None]:
    """Hand what goes into maps, and the gradient that comes out of them, to ``consume``.

    Inside the block, run a forward and a backward pass. Weights are frozen meanwhile, and since
    nothing below the first watched map needs a gradient, the backward pass ends there.

    Args:
        model: Evaluated without dropout.
        maps: Which.
        consume: Called once per map and backward pass, with inputs [n, t, i] and the gradient of
            its outputs [n, t, o] in their dtype.
    """
    handles = []
    size = {"examples": 0}

    def note_batch(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        size["examples"] = len(keywords["input_ids"] if "input_ids" in keywords else arguments[0])

    def watch(watched: WatchedMap) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs = arguments[0].detach()
            if not output.requires_grad:
                output.requires_grad_()

            def hand_over(gradient: Tensor) -> None:
                n = size["examples"]
                x = inputs.reshape(n, -1, inputs.shape[-1])
                consume(watched, x, gradient.reshape(n, -1, gradient.shape[-1]).to(x.dtype))

            output.register_hook(hand_over)  # type: ignore[no-untyped-call]

        return hook

    with frozen(model):
        try:
            handles.append(model.register_forward_pre_hook(note_batch, with_kwargs=True))
            for watched in maps:
                handles.append(watched.module.register_forward_hook(watch(watched)))
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def per_example_gradients(
    model: nn.Module,
    consume: Consumer,
    *,
    parameters: ChosenParameters | None = None,
    group: int = 1,
) -> Iterator[None]:
    """Hand per-example gradients of linear maps to ``consume`` during backward passes.

    Inside the block, run a forward pass and the backward pass of a loss that is a *sum* over
    examples of functions of each example alone. What went into a map is contracted over tokens with
    the gradient that comes out (`token_gradients`, `outer_product_gradients`); no loop over
    examples, no gradient of a weight itself.

    Args:
        model: Evaluated without dropout.
        consume: Called once per parameter and backward pass, with gradients [n / group, d] in the
            parameter's row-major order. It must not keep the tensor if memory matters.
        parameters: Linear maps only; the adapter's by default, with names as in
            `biasdiff.models.lora.lora_parameters`.
        group: Examples in a row: the mean of the gradients of this many neighbours.
    """
    chosen = lora_maps(model) if parameters is None else parameters

    def contract(watched: WatchedMap, x: Tensor, dy: Tensor) -> None:
        if group > 1:
            rows = len(x) // group
            x, dy = x.reshape(rows, -1, x.shape[-1]), dy.reshape(rows, -1, dy.shape[-1]) / group
        consume(watched.name, _contract(watched, x, dy))

    with token_gradients(model, chosen.maps, contract):
        yield


def _contract(watched: WatchedMap, x: Tensor, dy: Tensor) -> Tensor:
    """Return the parameter's gradients, [n, d], from [n, t, i] and [n, t, o]."""
    if watched.kind == "bias":
        return dy.sum(1)
    if watched.kind == "transposed":
        return outer_product_gradients(dy, x).flatten(1)
    return outer_product_gradients(x, dy).flatten(1)
