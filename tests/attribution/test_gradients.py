from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from biasdiff.attribution.gradients import per_example_gradients
from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.functional.losses import IGNORED, example_losses
from biasdiff.models.lora import lora_parameters
from biasdiff.training.target_losses import backward_example_losses
from tiny_models import ARCHITECTURES, adapt, slow_gradients

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)


def batched(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    with per_example_gradients(model, found.__setitem__):
        backward_example_losses(model, batch)
    return found


def worst_departure(
    fast: dict[str, torch.Tensor], slow: list[dict[str, torch.Tensor]]
) -> dict[str, float]:
    """Return by parameter the largest ‖Δ‖/‖g‖ over examples."""
    worst = {}
    for name, gradients in fast.items():
        expected = torch.stack([g[name].flatten() for g in slow]).double()
        lengths = expected.norm(dim=1)
        assert (lengths > 0).all(), f"{name} has no gradient, the test would show nothing"
        worst[name] = float(((gradients.double() - expected).norm(dim=1) / lengths).max())
    return worst


@EVERY_ARCHITECTURE
@DTYPES
def test_batched_gradients_equal_one_by_one_backward(
    adapted: Callable[..., tuple[Any, Any]],
    encodings: list[Encoding],
    architecture: str,
    dtype: torch.dtype,
) -> None:
    model, _ = adapted(architecture, dtype)
    slow = [slow_gradients(model, e) for e in encodings]
    compositions = {
        "all, right": (list(range(len(encodings))), "right"),
        "all, left": (list(range(len(encodings))), "left"),
        "three of unequal length, left": ([7, 6, 0], "left"),
        "two, right": ([2, 6], "right"),
        "alone, right": ([3], "right"),
    }
    for label, (members, side) in compositions.items():
        batch = make_batch([encodings[i] for i in members], pad_id=1, side=side)
        departures = worst_departure(batched(model, batch), [slow[i] for i in members])
        assert set(departures) == {name for name, _ in lora_parameters(model)}
        assert max(departures.values()) <= TOLERANCE[dtype], (label, departures)


@EVERY_ARCHITECTURE
def test_all_linear_maps_adapted(
    tiny: Callable[..., tuple[Any, Any]], encodings: list[Encoding], architecture: str
) -> None:
    from biasdiff.models.lora import linear_names

    base, _ = tiny(architecture, torch.float64)
    # GPT-2's c_proj names two kinds of maps, which must not be mixed up.
    model = adapt(base, rank=2, targets=linear_names(base))
    slow = [slow_gradients(model, e) for e in encodings[:4]]
    for side in ("left", "right"):
        departures = worst_departure(
            batched(model, make_batch(encodings[:4], pad_id=1, side=side)), slow
        )
        assert max(departures.values()) <= 1e-10, (side, departures)


def test_completion_only_targets(adapted: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = adapted("llama", torch.float64)
    examples = [
        Encoding([0, 5, 6, 7, 8], [IGNORED, IGNORED, IGNORED, 7, 8]),
        Encoding([0, 9, 10], [IGNORED, IGNORED, 10]),
    ]
    slow = [slow_gradients(model, e) for e in examples]
    assert max(worst_departure(batched(model, make_batch(examples)), slow).values()) <= 1e-10


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(
    adapted: Callable[..., tuple[Any, Any]], encodings: list[Encoding], training: bool
) -> None:
    model, _ = adapted("llama", dropout=0.3)
    model.train(training)
    before = {n: (p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()}
    batched(model, make_batch(encodings[:3]))
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is before[name][0], name
        assert torch.equal(parameter, before[name][1]), name
        assert parameter.grad is None, name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_is_restored_after_an_error(
    adapted: Callable[..., tuple[Any, Any]], encodings: list[Encoding]
) -> None:
    model, _ = adapted("llama")
    model.train()

    def refuse(name: str, gradients: torch.Tensor) -> None:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"), per_example_gradients(model, refuse):
        backward_example_losses(model, make_batch(encodings[:2]))
    assert model.training
    assert all(p.requires_grad for _, p in lora_parameters(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_dropout_plays_no_part(
    adapted: Callable[..., tuple[Any, Any]], encodings: list[Encoding]
) -> None:
    model, _ = adapted("llama", dropout=0.5)
    batch = make_batch(encodings[:3])
    quiet = batched(model, batch)
    model.train()
    loud = batched(model, batch)
    assert all(torch.equal(quiet[name], loud[name]) for name in quiet)


def test_losses_are_those_of_each_example(
    adapted: Callable[..., tuple[Any, Any]], encodings: list[Encoding]
) -> None:
    model, _ = adapted("llama", torch.float64)
    with per_example_gradients(model, lambda name, gradients: None):
        losses = backward_example_losses(model, make_batch(encodings))
    alone = [
        example_losses(
            model(input_ids=torch.tensor([e.input_ids])).logits, torch.tensor([e.labels])
        )
        for e in encodings
    ]
    torch.testing.assert_close(losses, torch.cat(alone), rtol=1e-10, atol=0)


def test_positional_input_ids(adapted: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = adapted("gpt2", torch.float64)
    example = Encoding([0, 5, 6, 7], [IGNORED, 5, 6, 7])
    found: dict[str, torch.Tensor] = {}
    with per_example_gradients(model, found.__setitem__):
        logits = model(torch.tensor([example.input_ids])).logits
        example_losses(logits, torch.tensor([example.labels])).sum().backward()
    assert max(worst_departure(found, [slow_gradients(model, example)]).values()) <= 1e-10
