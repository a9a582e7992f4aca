from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from biasdiff.attribution import curvature_sample
from biasdiff.attribution.curvature import (
    DEFAULTS,
    curvature_options,
    draw_sample,
    ekfac_factors,
    precondition,
    with_drawn_labels,
)
from biasdiff.attribution.parameters import chosen_parameters, lora_maps
from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.errors import ConfigError, DataError, ModelError, NonFiniteError
from biasdiff.functional.losses import IGNORED, example_losses
from biasdiff.models.lora import lora_linears, lora_parameters
from tiny_models import ARCHITECTURES, slow_gradients

Adapted = Callable[..., tuple[Any, Any]]
EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)
BOTH = pytest.mark.parametrize("method", ["datainf", "ekfac"])
COMPLETIONS = [
    Encoding([0, 5, 6, 7, 8], [IGNORED, IGNORED, IGNORED, 7, 8]),
    Encoding([0, 9, 10], [IGNORED, IGNORED, 10]),
    Encoding([0, 11, 12, 13], [IGNORED, 11, 12, 13]),
]


def random_directions(model: Any, k: int = 2, dtype: torch.dtype = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(p.numel(), k, generator=generator, dtype=torch.float64).to(dtype)
        for name, p in lora_parameters(model)
    }


def corrected(
    model: Any, encodings: list[Encoding], directions: Any, method: str, **settings: Any
) -> dict[str, Tensor]:
    settings = {"max_tokens": 40, "seed": 0, **settings}
    return precondition(model, encodings, directions, method=method, **settings)


def departures(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert set(found) == set(expected)
    return {
        name: float((found[name].double() - slow).norm() / slow.norm())
        for name, slow in expected.items()
    }


def greedy_tokens(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Stand in for drawn labels where an oracle must know them."""
    assert len(logits) == len(uniforms)
    return logits.argmin(1)


def greedy_labels(model: Any, encoding: Encoding) -> Encoding:
    logits = model(input_ids=torch.tensor([encoding.input_ids])).logits[0]
    labels = [
        IGNORED if label == IGNORED else int(logits[place - 1].argmin())
        for place, label in enumerate(encoding.labels)
    ]
    return Encoding(encoding.input_ids, labels)


def slow_tokens(model: Any, encoding: Encoding) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what goes into and the gradient of what comes out of every LoRA map, [t, i], [t, o].

    One example, no padding, plain autograd.
    """
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for linear in lora_linears(model):
        for kind, module in (("lora_A", linear.down), ("lora_B", linear.up)):
            name = f"{linear.name}.{kind}.weight"
            handles.append(
                module.register_forward_hook(
                    lambda _, x, y, name=name: kept.__setitem__(name, (x[0].detach()[0], y))
                )
            )
    batch = make_batch([encoding])
    loss = example_losses(model(input_ids=batch["input_ids"]).logits, batch["labels"])[0]
    gradients = torch.autograd.grad(loss, [y for _, y in kept.values()])
    for handle in handles:
        handle.remove()
    return {n: (x, g[0]) for (n, (x, _)), g in zip(kept.items(), gradients, strict=True)}


def slow_ekfac(
    model: Any, encodings: list[Encoding], directions: dict[str, Tensor], *, sampled: bool
) -> dict[str, Tensor]:
    """Build every weight's matrix in its Kronecker eigenbasis, and invert it."""
    scales = [e.targets**0.5 if sampled else 1.0 for e in encodings]
    gradients = [slow_gradients(model, e) for e in encodings]
    tokens = [slow_tokens(model, e) for e in encodings]
    found = {}
    for name, v in directions.items():
        x = torch.cat([t[name][0] for t in tokens])
        dy = torch.cat([s * t[name][1] for s, t in zip(scales, tokens, strict=True)])
        flat = torch.stack([s * g[name].flatten() for s, g in zip(scales, gradients, strict=True)])
        fisher = flat.T @ flat / len(flat)
        basis = torch.kron(*(torch.linalg.eigh(m.T @ m / len(m)).eigenvectors for m in (dy, x)))
        diagonal = (basis.T @ fisher @ basis).diag()
        matrix = basis @ torch.diag(diagonal + 0.1 * diagonal.mean()) @ basis.T
        found[name] = torch.linalg.solve(matrix, v)
    return found


def slow_datainf(
    model: Any, encodings: list[Encoding], directions: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Average explicit inverses of g_i g_iᵀ + λI, one after the other."""
    gradients = [slow_gradients(model, e) for e in encodings]
    found = {}
    for name, v in directions.items():
        own = [g[name].flatten() for g in gradients]
        damping = 0.1 * sum(float(g @ g) for g in own) / (len(own) * len(v))
        identity = damping * torch.eye(len(v), dtype=torch.float64)
        found[name] = sum(torch.linalg.solve(torch.outer(g, g) + identity, v) for g in own)
        found[name] = found[name] / len(own)
    return found


@EVERY_ARCHITECTURE
def test_datainf_equals_explicit_inverses(
    adapted: Adapted, encodings: list[Encoding], architecture: str
) -> None:
    model, _ = adapted(architecture, torch.float64)
    directions = random_directions(model)
    found = corrected(model, encodings, directions, "datainf")
    expected = slow_datainf(model, encodings, directions)
    assert max(departures(found, expected).values()) < 1e-9


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("labels", ["sampled", "empirical"])
def test_ekfac_equals_its_dense_construction(
    adapted: Adapted,
    encodings: list[Encoding],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    labels: str,
) -> None:
    monkeypatch.setattr(curvature_sample, "drawn_tokens", greedy_tokens)
    model, _ = adapted(architecture, torch.float64)
    directions = random_directions(model)
    found = corrected(model, encodings, directions, "ekfac", labels=labels)
    sampled = labels == "sampled"
    own = [greedy_labels(model, e) for e in encodings] if sampled else encodings
    expected = slow_ekfac(model, own, directions, sampled=sampled)
    assert max(departures(found, expected).values()) < 1e-9


@BOTH
def test_completion_only_targets(
    adapted: Adapted, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(curvature_sample, "drawn_tokens", greedy_tokens)
    model, _ = adapted("llama", torch.float64)
    directions = random_directions(model)
    found = corrected(model, COMPLETIONS, directions, method)
    if method == "datainf":
        expected = slow_datainf(model, COMPLETIONS, directions)
    else:
        own = [greedy_labels(model, e) for e in COMPLETIONS]
        expected = slow_ekfac(model, own, directions, sampled=True)
    assert max(departures(found, expected).values()) < 1e-9


@BOTH
def test_float32_is_close_to_float64(
    adapted: Adapted, encodings: list[Encoding], method: str
) -> None:
    exact, _ = adapted("llama", torch.float64)
    rough, _ = adapted("llama", torch.float32)
    expected = corrected(exact, encodings, random_directions(exact), method)
    found = corrected(rough, encodings, random_directions(rough, dtype=torch.float32), method)
    assert all(v.dtype == torch.float32 for v in found.values())
    assert max(departures(found, expected).values()) < 2e-3


def test_drawn_labels_make_the_gauss_newton_matrix(adapted: Adapted) -> None:
    """Against (1/n) Σ_i (1/T_i) Σ_t Σ_c p_tc u_tc u_tcᵀ, u_tc the gradient of -log p_tc."""
    model, _ = adapted("llama", torch.float64)
    examples = [
        Encoding([0, 40, 41, 42], [IGNORED, 40, 41, 42]),
        Encoding([0, 9, 10], [IGNORED] * 2 + [10]),
    ]
    name, weight = next((n, p) for n, p in lora_parameters(model) if "v_proj.lora_B" in n)
    exact = torch.zeros(weight.numel(), weight.numel(), dtype=torch.float64)
    for example in examples:
        log_p = model(input_ids=torch.tensor([example.input_ids])).logits[0].log_softmax(1)
        for place, label in enumerate(example.labels):
            if label == IGNORED:
                continue
            row = log_p[place - 1]
            for value in row:
                (u,) = torch.autograd.grad(-value, weight, retain_graph=True)
                u = u.flatten() * (value.detach().exp() / example.targets).sqrt()
                exact += torch.outer(u, u) / len(examples)
    repeated = examples * 1500
    sample = draw_sample(repeated, size=len(repeated), max_tokens=4000, seed=0)
    drawn = with_drawn_labels(model, sample, seed=0)
    chosen = chosen_of(model, [name])
    (factors,) = ekfac_factors(model, drawn, chosen, {name: torch.float64}).values()
    basis = torch.kron(factors.left, factors.right)
    expected = (basis.T @ exact @ basis).diag()
    trace = float(factors.eigenvalues.sum() / expected.sum())
    assert trace == pytest.approx(1, abs=0.05)
    assert float((factors.eigenvalues.flatten() - expected).norm() / expected.norm()) < 0.1


def chosen_of(model: Any, names: list[str]) -> Any:
    every = lora_maps(model)
    return type(every)(tuple(m for m in every.maps if m.name in names), {})


def test_drawn_labels_replace_targets_only(adapted: Adapted, encodings: list[Encoding]) -> None:
    model, _ = adapted("llama")
    given = [*encodings, *COMPLETIONS]
    before = [list(e.labels) for e in given]
    sample = draw_sample(given, size=100, max_tokens=60, seed=0)
    drawn = with_drawn_labels(model, sample, seed=0)
    assert [list(e.labels) for e in given] == before
    assert drawn.scales == [e.targets**0.5 for e in given]
    assert sum(d.labels != e.labels for d, e in zip(drawn.encodings, given, strict=True)) > 9
    for own, encoding in zip(drawn.encodings, given, strict=True):
        assert own.input_ids == encoding.input_ids
        targets = [label != IGNORED for label in encoding.labels]
        assert [label != IGNORED for label in own.labels] == targets
    other = with_drawn_labels(model, sample, seed=1)
    assert [e.labels for e in other.encodings] != [e.labels for e in drawn.encodings]


@BOTH
def test_batches_do_not_matter(adapted: Adapted, encodings: list[Encoding], method: str) -> None:
    model, _ = adapted("gpt2", torch.float64)
    directions = random_directions(model)
    one = corrected(model, encodings, directions, method, labels="sampled", max_tokens=1)
    for max_tokens in (50, 5000):
        other = corrected(
            model, encodings, directions, method, labels="sampled", max_tokens=max_tokens
        )
        assert max(departures(other, one).values()) < 1e-8


@BOTH
def test_same_seed_same_bytes(adapted: Adapted, encodings: list[Encoding], method: str) -> None:
    model, _ = adapted("llama")
    directions = random_directions(model, dtype=torch.float32)
    first, again, other = (
        corrected(model, encodings, directions, method, sample=5, labels="sampled", seed=seed)
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@BOTH
def test_a_sample_is_a_train_set_of_its_own(
    adapted: Adapted, encodings: list[Encoding], method: str
) -> None:
    model, _ = adapted("llama", torch.float64)
    directions = random_directions(model)
    sample = draw_sample(encodings, size=4, max_tokens=40, seed=7)
    assert len(sample.encodings) == 4
    assert len({id(e) for e in sample.encodings}) == 4
    found = corrected(model, encodings, directions, method, labels="empirical", sample=4, seed=7)
    alone = corrected(model, list(sample.encodings), directions, method, labels="empirical")
    assert max(departures(found, alone).values()) < 1e-9
    other = corrected(model, encodings, directions, method, labels="empirical", sample=4, seed=8)
    assert max(departures(found, other).values()) > 1e-3
    everything = corrected(model, encodings, directions, method, labels="empirical", sample=99)
    assert max(departures(found, everything).values()) > 1e-3


@BOTH
def test_heavy_damping_leaves_the_order_of_plain_products(
    adapted: Adapted, encodings: list[Encoding], method: str
) -> None:
    """Within a parameter; between them λ, their mean squared gradient entry, is left."""
    model, _ = adapted("llama", torch.float64)
    directions = random_directions(model)
    damping = 1e9
    found = corrected(model, encodings, directions, method, damping=damping, labels="empirical")
    gradients = [slow_gradients(model, e) for e in encodings]
    for name, direction in directions.items():
        flat = torch.stack([g[name].flatten() for g in gradients])
        mean_square = flat.square().mean()
        torch.testing.assert_close(
            found[name] * damping * mean_square, direction, rtol=1e-6, atol=1e-6
        )
        plain, own = flat @ direction, flat @ found[name]
        assert torch.equal(plain.argsort(0), own.argsort(0))


@BOTH
def test_an_untrained_adapter_has_no_direction_in_a(
    adapted: Adapted, encodings: list[Encoding], method: str
) -> None:
    """B starts at zero, so that A has no gradient."""
    model, _ = adapted("llama")
    for linear in lora_linears(model):
        linear.up.weight.data.zero_()
    found = corrected(model, encodings, random_directions(model, dtype=torch.float32), method)
    for name, direction in found.items():
        assert direction.isfinite().all()
        assert direction.any() == ("lora_B" in name)


@BOTH
def test_only_named_parameters_are_corrected(
    adapted: Adapted, encodings: list[Encoding], method: str
) -> None:
    model, _ = adapted("llama", torch.float64)
    directions = random_directions(model)
    some = {name: v for name, v in directions.items() if "v_proj" in name}
    whole = corrected(model, encodings, directions, method)
    found = corrected(model, encodings, some, method)
    assert max(departures(found, {n: whole[n] for n in some}).values()) < 1e-9


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_weights_and_biases_of_the_model_itself(
    adapted: Adapted, encodings: list[Encoding], architecture: str
) -> None:
    """A Conv1D stores its weight [inputs, outputs]; a bias is the weight of a constant 1."""
    model, _ = adapted(architecture, torch.float64)
    pattern = r"h\.1\.attn\.c_proj" if architecture == "gpt2" else r"layers\.1\.\w+\.v_proj"
    chosen = chosen_parameters(model, pattern)
    assert {w.kind for w in chosen.maps} == {
        "bias",
        "transposed" if architecture == "gpt2" else "weight",
    }
    module = chosen.maps[0].module
    kept: list[Tensor] = []
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(True)
    handle = module.register_forward_hook(lambda _, x, y: kept.extend([x[0].detach()[0], y]))
    tokens, gradients = [], []
    for encoding in encodings:
        kept.clear()
        batch = make_batch([encoding])
        loss = example_losses(model(input_ids=batch["input_ids"]).logits, batch["labels"])[0]
        wanted = [kept[1], module.weight, module.bias]
        dy, *own = torch.autograd.grad(loss, wanted)
        tokens.append((kept[0], dy[0]))
        gradients.append(torch.cat([own[0].flatten(), own[1]]))
    handle.remove()
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    x, dy = (torch.cat(side) for side in zip(*tokens, strict=True))
    flat = torch.stack(gradients)
    size = module.weight.numel()
    generator = torch.Generator().manual_seed(1)
    directions, expected = {}, {}
    for watched in chosen.maps:
        v = torch.randn(watched.size, 2, generator=generator, dtype=torch.float64)
        own = flat[:, size:] if watched.kind == "bias" else flat[:, :size]
        one = torch.ones(1, 1, dtype=torch.float64)
        sides = {"weight": (dy, x), "transposed": (x, dy), "bias": (dy, one)}[watched.kind]
        basis = torch.kron(*(torch.linalg.eigh(m.T @ m).eigenvectors for m in sides))
        diagonal = (own @ basis).square().mean(0)
        shrunk = basis.T @ v / (diagonal + 0.1 * diagonal.mean())[:, None]
        directions[watched.name], expected[watched.name] = v, basis @ shrunk
    found = corrected(model, encodings, directions, "ekfac", labels="empirical", parameters=chosen)
    assert max(departures(found, expected).values()) < 1e-9


def test_datainf_of_any_parameter(adapted: Adapted, encodings: list[Encoding]) -> None:
    """Where some belong to no linear map, examples go through one at a time."""
    model, _ = adapted("llama", torch.float64)
    chosen = chosen_parameters(model, r"layers\.1\.(self_attn\.v_proj|input_layernorm)")
    assert chosen.others
    assert chosen.maps
    directions = {n: torch.ones(s, 1, dtype=torch.float64) for n, s in chosen.sizes.items()}
    found = corrected(model, encodings, directions, "datainf", parameters=chosen)
    (name, weight), *_ = chosen.others.items()
    weight.requires_grad_(True)
    gradients = []
    for encoding in encodings:
        batch = make_batch([encoding])
        loss = example_losses(model(input_ids=batch["input_ids"]).logits, batch["labels"])[0]
        gradients.append(torch.autograd.grad(loss, weight)[0])
    weight.requires_grad_(False)
    flat = torch.stack(gradients)
    damping = 0.1 * float(flat.square().mean())
    identity = damping * torch.eye(flat.shape[1], dtype=torch.float64)
    inverses = [torch.linalg.inv(torch.outer(g, g) + identity) for g in flat]
    expected = torch.stack(inverses).mean(0) @ directions[name]
    torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=0)
    with pytest.raises(ModelError, match=r"EK-FAC of .*layernorm.*take DataInf"):
        corrected(model, encodings, directions, "ekfac", parameters=chosen)


@BOTH
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("trainable", [True, False])
def test_the_model_is_left_as_it_was(
    adapted: Adapted, encodings: list[Encoding], method: str, training: bool, trainable: bool
) -> None:
    model, _ = adapted("llama", dropout=0.3)
    model.train(training)
    for _, parameter in lora_parameters(model):
        parameter.requires_grad_(trainable)
    before = {n: (p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()}
    directions = random_directions(model, dtype=torch.float32)
    given = {name: v.clone() for name, v in directions.items()}
    state = torch.get_rng_state()
    found = corrected(model, encodings, directions, method, labels="sampled")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(directions[name], v) for name, v in given.items())
    assert all(module.training is training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is before[name][0], name
        assert torch.equal(parameter, before[name][1]), name
        assert parameter.grad is None, name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.eval()  # dropout played no part
    quiet = corrected(model, encodings, directions, method, labels="sampled")
    assert all(torch.equal(found[name], quiet[name]) for name in found)


@BOTH
@pytest.mark.parametrize("labels", ["sampled", "empirical"])
def test_examples_that_are_not_finite_are_named(
    adapted: Adapted, encodings: list[Encoding], method: str, labels: str
) -> None:
    model, _ = adapted("llama")
    embedding = model.get_input_embeddings().weight
    embedding.data[1] = float("nan")
    broken = Encoding([0, 1, 5], [IGNORED, 1, 5])
    given = [*encodings[:2], broken, *encodings[2:], broken]
    directions = random_directions(model, dtype=torch.float32)
    names = [f"row-{i}" for i in range(len(given))]
    with pytest.raises(NonFiniteError, match=r"not finite for row-\d+.*check these examples") as e:
        corrected(model, given, directions, method, labels=labels, names=names, max_tokens=99)
    assert "row-2" in str(e.value)
    assert "row-0" not in str(e.value)
    with pytest.raises(NonFiniteError, match=r"not finite for example 2"):
        corrected(model, given, directions, method, labels=labels)


@BOTH
@pytest.mark.parametrize("labels", ["sampled", "empirical"])
def test_gradients_that_are_not_finite_are_named_where_losses_are(
    adapted: Adapted, encodings: list[Encoding], method: str, labels: str
) -> None:
    model, _ = adapted("llama")

    def spoil(_: Any, arguments: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("inf"))

    layer = model.get_base_model().model.layers[1]
    layer.register_forward_hook(lambda _, x, y: spoil(_, x, y if isinstance(y, Tensor) else y[0]))
    directions = random_directions(model, dtype=torch.float32)
    with pytest.raises(
        NonFiniteError, match=r"for example \d, (example \d, ){6}example \d and 2 m"
    ):
        corrected(model, encodings, directions, method, labels=labels, max_tokens=5000)


@BOTH
def test_too_few_examples(adapted: Adapted, encodings: list[Encoding], method: str) -> None:
    model, _ = adapted("llama")
    directions = random_directions(model)
    with pytest.raises(DataError, match=r"^1 train examples .*expected at least 2; take an"):
        corrected(model, encodings[:1], directions, method)


def test_directions_that_do_not_fit(adapted: Adapted, encodings: list[Encoding]) -> None:
    model, _ = adapted("llama")
    directions = random_directions(model)
    name = next(iter(directions))
    with pytest.raises(ModelError, match=r"shape \[95, 2\] for .*; expected \[96, k\]; take"):
        corrected(model, encodings, {name: directions[name][1:]}, "datainf")
    with pytest.raises(ModelError, match=r"for nowhere; expected a parameter that is measured"):
        corrected(model, encodings, {"nowhere": directions[name]}, "datainf")


@BOTH
def test_defaults_are_those_of_the_papers(method: str) -> None:
    assert curvature_options(method, {}) == DEFAULTS[method]
    assert curvature_options(method, {"sample": 5})["damping"] == 0.1
    assert curvature_options(method, {"damping": 1})["damping"] == 1


@BOTH
@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("labels", "true", "one of sampled, empirical"),
        ("damping", 0, "a number above 0"),
        ("damping", -0.1, "a number above 0"),
        ("damping", float("nan"), "a number above 0"),
        ("damping", float("inf"), "a number above 0"),
        ("damping", "0.1", "a number above 0"),
        ("damping", True, "a number above 0"),
        ("sample", 1, "a whole number from 2 up"),
        ("sample", 2.5, "a whole number from 2 up"),
        ("sample", None, "a whole number from 2 up"),
        ("sample", True, "a whole number from 2 up"),
    ],
)
def test_settings_out_of_range(method: str, option: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        curvature_options(method, {option: value})
    assert str(error.value) == (
        f"{method}: {option} is {value!r}; expected {expected}; "
        f"mend attribution.options.{method}.{option}."
    )


def test_unknown_settings() -> None:
    with pytest.raises(ConfigError, match=r"ekfac has no option 'dampin' \(did you mean 'damping"):
        curvature_options("ekfac", {"dampin": 1})
