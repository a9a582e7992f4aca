"""Per-example gradients of LoRA weights for whole batches at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from biasdiff.data.batching import Batch
from biasdiff.functional.influence import outer_product_gradients
from biasdiff.functional.losses import example_losses
from biasdiff.models.lora import lora_linears

Consumer = Callable[[str, Tensor], None]
"""Takes a parameter's saved name and its gradients [n, d], one example per row."""


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Switch off every parameter's own gradient, and training mode, for the duration."""
    was_training = model.training
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    model.eval()
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(was_training)


@contextmanager
def per_example_gradients(model: nn.Module, consume: Consumer) -> Iterator[None]:
    """Hand every LoRA weight's per-example gradients to ``consume`` during backward passes.

    Inside the block, run a forward pass and the backward pass of a loss that is a *sum* over
    examples of functions of each example alone. Hooks on A and B keep what went in and contract it
    over tokens with the gradient that comes out (`outer_product_gradients`); no loop over examples,
    no gradient of a weight itself. Weights are frozen meanwhile, and since nothing below the first
    adapter needs a gradient, the backward pass ends there.

    Args:
        model: PEFT model; evaluated without dropout.
        consume: Called once per weight and backward pass, with a name as in
            `biasdiff.models.lora.lora_parameters` and gradients [n, d] in the weight's row-major
            order. It must not keep the tensor if memory matters.
    """
    handles = []
    size = {"examples": 0}

    def note_batch(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        size["examples"] = len(keywords["input_ids"] if "input_ids" in keywords else arguments[0])

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs = arguments[0].detach()
            if not output.requires_grad:
                output.requires_grad_()

            def contract(gradient: Tensor) -> None:
                n = size["examples"]
                x = inputs.reshape(n, -1, inputs.shape[-1])
                dy = gradient.reshape(n, -1, gradient.shape[-1])
                consume(name, outer_product_gradients(x, dy.to(x.dtype)).flatten(1))

            output.register_hook(contract)  # type: ignore[no-untyped-call]

        return hook

    with _frozen(model):
        try:
            handles.append(model.register_forward_pre_hook(note_batch, with_kwargs=True))
            for linear in lora_linears(model):
                for kind, module in (("lora_A", linear.down), ("lora_B", linear.up)):
                    hook = watch(f"{linear.name}.{kind}.weight")
                    handles.append(module.register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()


def backward_example_losses(model: Any, batch: Batch) -> Tensor:
    """Run forward and backward of Σ_i ℓ_i and return the losses ℓ_i, [n].

    ℓ_i is the mean over the example's target tokens, so padding and the other examples of the batch
    do not change its gradient.
    """
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
    with torch.enable_grad():
        losses = example_losses(model(**inputs, use_cache=False).logits, batch["labels"])
        torch.autograd.backward(losses.sum())
    return losses.detach()
