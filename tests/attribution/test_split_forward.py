from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from biasdiff.attribution import split_forward
from biasdiff.attribution.paired_adapters import SIDES, PairedAdapters, paired_adapters
from biasdiff.attribution.split_forward import PLAIN, SplitForward, Way, decoder_layers
from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.functional.losses import IGNORED
from tiny_models import ARCHITECTURES, CONTEXT, GROUPED, SIZES, adapt

EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)
FASTEST = Way(split=True, gather=True)
COMMON = {**SIZES, **GROUPED, "vocab_size": 320, "initializer_range": 0.15, "pad_token_id": None}
# Eager attention takes its softmax in float32, where float64's lowest number, which masks a padded
# position beyond every window, is -inf: Gemma 2 gets a window as long as the context.
CAPPED: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma2": lambda: Gemma2Config(
        **COMMON,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=CONTEXT,
        final_logit_softcapping=0.5,
    ),
    "gemma3": lambda: Gemma3TextConfig(**COMMON, head_dim=8, final_logit_softcapping=0.5),
    "cohere": lambda: CohereConfig(**COMMON, logit_scale=0.3),
    "granite": lambda: GraniteConfig(**COMMON, logits_scaling=3.0, embedding_multiplier=2.0),
}


def from_config(config: PreTrainedConfig, dtype: torch.dtype = torch.float64) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return adapt(AutoModelForCausalLM.from_config(config, dtype=dtype).eval())


def random_sides(model: Any, layers: Any) -> PairedAdapters:
    adapters = paired_adapters(model, layers=layers, rank=3, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in adapters.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(noise * 0.2)
    return adapters


def one_by_one(model: Any, encodings: list[Encoding]) -> Tensor:
    """Return each text's mean log-likelihood, every text alone in a plain forward pass."""
    means = []
    for encoding in encodings:
        log_probs = model(input_ids=torch.tensor([encoding.input_ids])).logits[0].log_softmax(-1)
        values = [
            log_probs[place, label]
            for place, label in enumerate(encoding.labels[1:])
            if label != IGNORED
        ]
        means.append(torch.stack(values).mean())
    return torch.stack(means).detach()


def forward_over(model: Any, adapters: PairedAdapters) -> SplitForward:
    return SplitForward(model.get_base_model(), adapters.switch, SIDES, shared=adapters.first_layer)


def compare(
    model: Any, adapters: PairedAdapters, encodings: list[Encoding], tolerance: float = 1e-10
) -> Way | None:
    """Hold the result against the slow one, for the first batch and a later one."""
    forward = forward_over(model, adapters)
    with adapters.attached(model):
        for members in (encodings, encodings[2:5]):
            found = forward.mean_log_probs(make_batch(members))
            slow = {}
            for side in SIDES:
                adapters.switch(side)
                slow[side] = one_by_one(model.get_base_model(), members)
                torch.testing.assert_close(
                    found[side], slow[side].double(), rtol=tolerance, atol=tolerance
                )
            assert (slow[SIDES[0]] - slow[SIDES[1]]).abs().min() > 1e-4  # else it shows nothing
    return forward.way


def layer_calls(model: Any) -> list[int]:
    """Return counters of how often each decoder layer truly computes something."""
    from transformers.pytorch_utils import Conv1D

    layers = decoder_layers(model.get_base_model())
    calls = [0] * len(layers)

    def count(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[number] += 1

        return hook

    for number, layer in enumerate(layers):
        inner = next(m for m in layer.modules() if isinstance(m, nn.Linear | Conv1D))
        inner.register_forward_pre_hook(count(number))
    return calls


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("layers", ["all", "upper"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_equals_one_text_at_a_time(
    adapted: Callable[..., tuple[Any, Any]],
    encodings: list[Encoding],
    architecture: str,
    layers: str,
    dtype: torch.dtype,
) -> None:
    model, _ = adapted(architecture, dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    way = compare(model, random_sides(model, layers), encodings, tolerance)
    assert way == Way(split=layers == "upper", gather=True)


@EVERY_ARCHITECTURE
def test_the_lower_half_is_computed_once(
    adapted: Callable[..., tuple[Any, Any]], encodings: list[Encoding], architecture: str
) -> None:
    model, _ = adapted(architecture)
    counted = {}
    calls = layer_calls(model)
    for layers in ("all", "upper"):
        adapters = random_sides(model, layers)
        forward = forward_over(model, adapters)
        with adapters.attached(model):
            forward.mean_log_probs(make_batch(encodings))
            calls[:] = [0] * len(calls)
            forward.mean_log_probs(make_batch(encodings[:3]))
        counted[layers] = list(calls)
    assert counted == {"all": [2, 2], "upper": [1, 2]}


def test_five_layers_have_three_upper_ones(encodings: list[Encoding]) -> None:
    model = from_config(LlamaConfig(**{**COMMON, "num_hidden_layers": 5}))
    adapters = random_sides(model, "upper")
    assert adapters.first_layer == 2
    assert compare(model, adapters, encodings) == FASTEST
    forward, calls = forward_over(model, adapters), layer_calls(model)
    with adapters.attached(model):
        forward.mean_log_probs(make_batch(encodings))
        calls[:] = [0] * 5
        forward.mean_log_probs(make_batch(encodings))
    assert calls == [1, 1, 2, 2, 2]


@pytest.mark.parametrize("name", CAPPED)
@pytest.mark.parametrize("layers", ["all", "upper"])
def test_scaled_and_capped_logits(encodings: list[Encoding], name: str, layers: str) -> None:
    model = from_config(CAPPED[name]())
    way = compare(model, random_sides(model, layers), encodings, 1e-6)
    assert way == Way(split=layers == "upper", gather=True)


@EVERY_ARCHITECTURE
def test_chunks_change_nothing_and_cost_no_layer(
    adapted: Callable[..., tuple[Any, Any]],
    encodings: list[Encoding],
    architecture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(split_forward, "CHUNK", 7)
    model, _ = adapted(architecture, torch.float64)
    adapters = random_sides(model, "upper")
    assert compare(model, adapters, encodings) == FASTEST
    forward, calls = forward_over(model, adapters), layer_calls(model)
    widest = []
    model.get_output_embeddings().register_forward_hook(
        lambda _, arguments, output: widest.append(output.shape[-2])
    )
    with adapters.attached(model):
        forward.mean_log_probs(make_batch(encodings))
        calls[:] = [0, 0]
        widest.clear()
        forward.mean_log_probs(make_batch(encodings))
    assert calls == [1, 2]
    assert max(widest) == 7


def test_only_targets_reach_the_output_layer(
    adapted: Callable[..., tuple[Any, Any]], encodings: list[Encoding]
) -> None:
    model, _ = adapted("llama")
    completions = [
        Encoding(e.input_ids, [IGNORED] * (len(e) - 2) + e.labels[-2:]) for e in encodings
    ]
    adapters = random_sides(model, "all")
    forward = forward_over(model, adapters)
    rows = []
    model.get_output_embeddings().register_forward_hook(
        lambda _, arguments, output: rows.append(output.shape[:-1].numel())
    )
    with adapters.attached(model):
        forward.mean_log_probs(make_batch(completions))
        rows.clear()
        forward.mean_log_probs(make_batch(completions))
    assert rows == [2 * len(completions)] * 2
    assert compare(model, adapters, completions, 2e-5) == Way(split=False, gather=True)


def remembers_the_lower_layer(base: Any) -> None:
    """Let the upper layer notice whether the lower one has run, as shared keys would."""
    lower, upper = decoder_layers(base)
    ran: list[int] = []
    inner = next(m for m in lower.modules() if isinstance(m, nn.Linear))
    inner.register_forward_hook(lambda *_: ran.append(1))

    def shift(_: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        shifted = output + (0.5 if ran else 0.0)
        ran.clear()
        return shifted

    upper.register_forward_hook(shift)


def mixes_positions(base: Any) -> None:
    """Let the output layer look at how many positions there are."""
    base.get_output_embeddings().register_forward_hook(
        lambda _, arguments, output: output * (1 + 0.01 * output.shape[1])
    )


def refuses_one_row(base: Any) -> None:
    """Let the output layer fail for anything but whole batches."""

    def check(_: nn.Module, arguments: Any, output: Tensor) -> None:
        if len(output) == 1:
            raise ValueError("only whole batches")

    base.get_output_embeddings().register_forward_hook(check)


@pytest.mark.parametrize(
    ("oddities", "expected"),
    [
        ((remembers_the_lower_layer,), Way(split=False, gather=True)),
        ((mixes_positions,), Way(split=True, gather=False)),
        ((refuses_one_row,), Way(split=True, gather=False)),
        ((remembers_the_lower_layer, mixes_positions), PLAIN),
        ((remembers_the_lower_layer, refuses_one_row), PLAIN),
    ],
)
def test_a_model_of_its_own_kind_is_computed_as_far_as_it_agrees(
    adapted: Callable[..., tuple[Any, Any]],
    encodings: list[Encoding],
    oddities: tuple[Callable[[Any], None], ...],
    expected: Way,
) -> None:
    model, _ = adapted("llama", torch.float64)
    adapters = random_sides(model, "upper")
    for oddity in oddities:
        oddity(model.get_base_model())
    same_length = [e.cut(7) for e in encodings if len(e) >= 7]
    forward = forward_over(model, adapters)
    with adapters.attached(model):
        for members in (same_length, same_length[1:4]):
            batch = make_batch(members)
            found = forward.mean_log_probs(batch)
            for side in SIDES:
                adapters.switch(side)
                inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
                logits = model.get_base_model()(**inputs, use_cache=False).logits[:, :-1]
                chosen = logits.log_softmax(-1).gather(2, batch["labels"][:, 1:, None])
                torch.testing.assert_close(found[side], chosen.squeeze(2).mean(1))
    assert forward.way == expected


def test_a_model_without_an_output_layer_of_its_own(
    adapted: Callable[..., tuple[Any, Any]],
    encodings: list[Encoding],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = adapted("llama", torch.float64)
    monkeypatch.setattr(type(model.get_base_model()), "get_output_embeddings", lambda _: None)
    way = compare(model, random_sides(model, "upper"), encodings)
    assert way == Way(split=True, gather=False)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_behind(
    adapted: Callable[..., tuple[Any, Any]], encodings: list[Encoding], fails: bool
) -> None:
    model, _ = adapted("llama")
    adapters = random_sides(model, "upper")
    forward = forward_over(model, adapters)
    with adapters.attached(model):
        forward.mean_log_probs(make_batch(encodings))
    layer = decoder_layers(model.get_base_model())[1]

    def refuse(*_: Any) -> None:
        raise RuntimeError("no room")

    handle = layer.register_forward_hook(refuse) if fails else None
    expectation = pytest.raises(RuntimeError, match="no room") if fails else nullcontext()
    with expectation, adapters.attached(model):
        forward.mean_log_probs(make_batch(encodings))
    if handle is not None:
        handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())


def test_a_wrapped_forward_is_put_back(
    adapted: Callable[..., tuple[Any, Any]], encodings: list[Encoding]
) -> None:
    model, _ = adapted("llama")
    layer = decoder_layers(model.get_base_model())[0]
    inner = layer.forward
    layer.forward = wrapped = lambda *a, **k: inner(*a, **k)
    assert compare(model, random_sides(model, "upper"), encodings, 2e-5) == FASTEST
    assert vars(layer)["forward"] is wrapped


@EVERY_ARCHITECTURE
def test_decoder_layers_of_every_architecture(
    tiny: Callable[..., tuple[Any, Any]], architecture: str
) -> None:
    base, _ = tiny(architecture)
    layers = decoder_layers(base)
    assert len(layers) == SIZES["num_hidden_layers"]
    assert all("Layer" in type(m).__name__ or "Block" in type(m).__name__ for m in layers)


def test_no_decoder_layers_in_something_else() -> None:
    assert decoder_layers(nn.Linear(2, 2)) == []
