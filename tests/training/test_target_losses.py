"""Losses at target positions only, also where something follows the output layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from biasdiff.attribution.gradients import per_example_gradients
from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.training import target_losses
from biasdiff.training.target_losses import backward_example_losses
from tiny_models import ARCHITECTURES, adapt, slow_gradients

Adapted = Callable[..., tuple[Any, Any]]
SMALL = {
    "vocab_size": 400,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def capped(kind: str) -> Any:
    """Return a model whose logits are not its output layer's alone."""
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    if kind == "capped":
        config = Gemma2Config(
            **SMALL, final_logit_softcapping=0.5, attn_implementation="eager", sliding_window=64
        )
        return adapt(Gemma2ForCausalLM(config))
    sizes = {key: value for key, value in SMALL.items() if key != "head_dim"}
    return adapt(CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.3)))


def gradients(model: Any, examples: list[Encoding], side: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    with per_example_gradients(model, found.__setitem__):
        backward_example_losses(model, make_batch(examples, side=side))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("kind", ["capped", "scaled"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_follows_the_output_layer_counts(
    kind: str, side: str, encodings: list[Encoding]
) -> None:
    model = capped(kind)
    examples = encodings[:4]
    slow = [slow_gradients(model, example) for example in examples]
    for name, found in gradients(model, examples, side).items():
        expected = torch.stack([g[name].flatten() for g in slow])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    head = model.get_base_model().get_output_embeddings()
    assert target_losses._IS_LINEAR[head] is False


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_output_layers_are_found_out(
    adapted: Adapted, encodings: list[Encoding], architecture: str
) -> None:
    model, _ = adapted(architecture)
    gradients(model, encodings[:3], "right")
    head = model.get_base_model().get_output_embeddings()
    assert target_losses._IS_LINEAR[head] is True


def test_only_target_positions_go_through_the_output_layer(
    adapted: Adapted, encodings: list[Encoding]
) -> None:
    model, _ = adapted("llama")
    gradients(model, encodings[:2], "right")  # the trial of a first batch
    head = model.get_base_model().get_output_embeddings()
    seen: list[int] = []
    forward = head.forward

    def counting(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden.shape[:-1].numel())
        return forward(hidden)

    head.forward = counting
    gradients(model, encodings[:3], "right")
    assert seen == [3], "one position of each row, for form's sake"


def test_an_output_layer_that_is_adapted_or_watched_gets_every_position(
    tiny: Adapted, encodings: list[Encoding]
) -> None:
    base, _ = tiny("opt", torch.float64)
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    model = adapt(base, targets=["q_proj", "lm_head"])
    slow = [slow_gradients(model, example) for example in encodings[:3]]
    found = gradients(model, encodings[:3], "right")
    assert any("lm_head" in name for name in found)
    for name, values in found.items():
        expected = torch.stack([g[name].flatten() for g in slow])
        torch.testing.assert_close(values, expected, rtol=1e-8, atol=1e-10)


def test_the_sum_of_losses(adapted: Adapted, encodings: list[Encoding]) -> None:
    model, _ = adapted("gpt2", torch.float64)
    batch = make_batch(encodings[:4])
    with per_example_gradients(model, lambda name, values: None):
        mean = backward_example_losses(model, batch)
        total = backward_example_losses(model, batch, average=False)
    counts = torch.tensor([float(e.targets) for e in encodings[:4]], dtype=torch.float64)
    torch.testing.assert_close(total, mean * counts)
