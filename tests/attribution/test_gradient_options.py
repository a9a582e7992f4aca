"""What changes a gradient estimator: parameters, groups, loss, normalisation, the classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from biasdiff.attribution.explanation import explain_example
from biasdiff.attribution.gradient_classifier import classifier_direction, gram_matrix
from biasdiff.attribution.gradients import batch_gradients
from biasdiff.attribution.material import EncodedProbes
from biasdiff.attribution.pair_classifier import fit_pair_classifier
from biasdiff.attribution.parameters import base_name, chosen_parameters
from biasdiff.attribution.probe_directions import Kind, probe_directions
from biasdiff.attribution.scoring import Comparison, Pass, grouped_batches, score_train_set
from biasdiff.attribution.train_sides import TRAIN_SIDES
from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding, encode_text
from biasdiff.errors import ConfigError
from biasdiff.functional.losses import IGNORED, example_losses
from small_probes import encoded_probes, random_adam
from tiny_models import ARCHITECTURES

Adapted = Callable[..., tuple[Any, Any]]
LINEAR = r"(proj|c_attn|c_fc|fc1|fc2)\.(weight|bias)$"


def slow_gradient(
    model: Any, example: Encoding, names: list[str], *, average: bool = True
) -> torch.Tensor:
    """Return the gradient in some parameters of one example, from plain backward."""
    model.eval()
    named = {base_name(n): p for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in names:
        named[name].requires_grad_(True)
    logits = model(input_ids=torch.tensor([example.input_ids])).logits
    loss = example_losses(logits, torch.tensor([example.labels])).sum()
    loss = loss if average else loss * example.targets
    found = torch.autograd.grad(loss, [named[n] for n in names])
    for name in names:
        named[name].requires_grad_(False)
    return torch.cat([g.flatten().double() for g in found])


def score(
    model: Any, encodings: list[Encoding], comparisons: dict[str, Comparison], how: Pass
) -> dict[str, np.ndarray]:
    names = [f"row-{i}" for i in range(len(encodings))]
    sums, _ = score_train_set(model, encodings, names, comparisons, how)
    return {name: value.double().numpy() for name, value in sums.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("which", [LINEAR, "all", "norm|ln_|wte|embed"])
def test_gradients_of_the_models_own_parameters(
    adapted: Adapted, encodings: list[Encoding], architecture: str, which: str
) -> None:
    model, _ = adapted(architecture, torch.float64)
    chosen = chosen_parameters(model, which)
    if which == LINEAR:
        assert chosen.maps
        assert not chosen.others
    else:
        assert chosen.others
    found: dict[str, list[torch.Tensor]] = {name: [] for name in chosen.sizes}
    batch = make_batch(encodings[:4], pad_id=1)
    batch_gradients(model, batch, lambda n, g: found[n].append(g), parameters=chosen)
    names = list(chosen.sizes)
    for row, example in enumerate(encodings[:4]):
        ours = torch.cat([torch.cat(found[name])[row] for name in names])
        slow = slow_gradient(model, example, names)
        assert float(slow.norm()) > 0
        # Gemma 3 computes its norms in float32 whatever the model's dtype.
        limit = 1e-7 if architecture == "gemma3" else 1e-10
        assert float((ours - slow).norm() / slow.norm()) < limit


def test_all_counts_every_parameter_once(adapted: Adapted) -> None:
    model, _ = adapted("llama")
    expected = sum(p.numel() for n, p in model.named_parameters() if ".lora_" not in n)
    assert sum(chosen_parameters(model, "all").sizes.values()) == expected


def test_parameters_that_are_none(adapted: Adapted) -> None:
    model, _ = adapted("llama")
    with pytest.raises(ConfigError, match=r"parameters is '\(', which is no regular expression"):
        chosen_parameters(model, "(")
    with pytest.raises(ConfigError, match=r"'vision', which matches no parameter.*embed_tokens"):
        chosen_parameters(model, "vision")


@pytest.mark.parametrize("side", sorted(TRAIN_SIDES))
@pytest.mark.parametrize("normalize", ["none", "train", "both"])
@pytest.mark.parametrize("average", [True, False])
def test_normalisation_and_loss_follow_their_formulas(
    adapted: Adapted, encodings: list[Encoding], side: str, normalize: str, average: bool
) -> None:
    model, tokenizer = adapted("qwen2", torch.float64)
    names = list(chosen_parameters(model).sizes)
    adam, probes = random_adam(model), encoded_probes(tokenizer)
    kind = Kind("contrast", normalize == "both")
    direction = probe_directions(model, probes, kinds=[kind], max_tokens=80, average=average)[kind]
    comparison = Comparison(TRAIN_SIDES[side](adam), direction, normalize)  # type: ignore[arg-type]
    how = Pass(max_tokens=100, average=average)
    found = score(model, encodings[:5], {"one": comparison}, how)["one"].sum(1)
    lora = {n.replace(".default.", "."): n for n, _ in model.named_parameters()}
    own = [base_name(lora[name]) for name in names]
    target = 0
    for more, less in zip(probes.more, probes.less, strict=True):
        u = slow_gradient(model, more, own, average=average)
        u = u - slow_gradient(model, less, own, average=average)
        target = target + (u / u.norm() if normalize == "both" else u)
    sizes = chosen_parameters(model).sizes
    for row, example in enumerate(encodings[:5]):
        g = slow_gradient(model, example, own, average=average)
        parts = dict(zip(names, g.split(list(sizes.values())), strict=True))
        make = TRAIN_SIDES[side](adam)
        gamma = torch.cat([make(n, part[None])[0] for n, part in parts.items()])
        expected = gamma @ target
        if normalize != "none":
            expected = expected / gamma.norm()
        assert found[row] == pytest.approx(float(expected), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("side", ["sgd", "less"])
@pytest.mark.parametrize("size", [2, 3, 64])
def test_a_group_shares_the_score_of_its_mean_gradient(
    adapted: Adapted, encodings: list[Encoding], side: str, size: int
) -> None:
    model, tokenizer = adapted("llama", torch.float64)
    adam, probes = random_adam(model), encoded_probes(tokenizer)
    direction = probe_directions(model, probes, kinds=[Kind("plain")], max_tokens=80)[Kind("plain")]
    how = Pass(max_tokens=60, group=size, seed=5)
    comparison = Comparison(TRAIN_SIDES[side](adam), direction)
    found = score(model, encodings, {"one": comparison}, how)["one"]
    batches = grouped_batches([len(e) for e in encodings], how)
    groups = [
        batch[start : start + group]
        for group, batch in batches
        for start in range(0, len(batch), group)
    ]
    assert sorted(i for group in groups for i in group) == list(range(len(encodings)))
    assert sum(len(group) != size for group in groups) == (len(encodings) % size > 0)
    for group in groups:
        mean = mean_gradient(model, [encodings[i] for i in group])
        gamma = {n: TRAIN_SIDES[side](adam)(n, g) for n, g in mean.items()}
        length = torch.cat([g[0] for g in gamma.values()]).norm()
        expected = sum(g[0].float() @ direction.sums[n] for n, g in gamma.items()) / length
        for i in group:
            np.testing.assert_allclose(found[i], expected.double().numpy(), atol=2e-6)


def mean_gradient(model: Any, examples: list[Encoding]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def add(name: str, gradients: torch.Tensor) -> None:
        found[name] = found.get(name, 0) + gradients / len(examples)

    for example in examples:
        batch_gradients(model, make_batch([example]), add)
    return found


def test_groups_follow_the_seed(encodings: list[Encoding]) -> None:
    lengths = [len(e) for e in encodings] * 3
    drawn = [grouped_batches(lengths, Pass(100, group=4, seed=s)) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("side", sorted(TRAIN_SIDES))
@pytest.mark.parametrize("normalize", ["none", "both"])
@pytest.mark.parametrize("average", [True, False])
def test_explanations_add_up(
    adapted: Adapted, encodings: list[Encoding], side: str, normalize: str, average: bool
) -> None:
    model, tokenizer = adapted("gpt2", torch.float64)
    adam, probes = random_adam(model), encoded_probes(tokenizer)
    kind = Kind("plain", normalize == "both")
    direction = probe_directions(model, probes, kinds=[kind], max_tokens=80, average=average)[kind]
    comparison = Comparison(TRAIN_SIDES[side](adam), direction, normalize)  # type: ignore[arg-type]
    how = Pass(max_tokens=100, average=average)
    scores = score(model, encodings, {"one": comparison}, how)["one"].sum(1) / len(probes.more)
    completion = Encoding(encodings[0].input_ids, [IGNORED] * 3 + encodings[0].labels[3:])
    for example, expected in [(encodings[0], scores[0]), (encodings[6], scores[6])]:
        found = explain_example(
            model, example, comparison, chosen_parameters(model), max_tokens=50, average=average
        )
        assert found.tokens == [t for t in example.labels[1:] if t != IGNORED]
        assert found.score == pytest.approx(expected, rel=1e-5)
        assert sum(found.contributions) + found.momentum == pytest.approx(found.score, rel=1e-5)
        assert (found.momentum != 0) == (side in {"less", "adam"})
    found = explain_example(
        model, completion, comparison, chosen_parameters(model), max_tokens=50, average=average
    )
    assert len(found.tokens) == len(found.contributions) == completion.targets


def planted_probes(tokenizer: Any, count: int) -> tuple[EncodedProbes, list[str]]:
    """Return pairs that always differ in the same two words, so that a classifier can learn."""
    more = [f"The nurse {n} said that she was late." for n in range(count)]
    less = [text.replace("she", "he") for text in more]
    kinds = ["gender" if n % 2 else "age" for n in range(count)]
    encoded = [[encode_text(tokenizer, text) for text in side] for side in (more, less)]
    names = [f"probe row {n}" for n in range(count)]
    return EncodedProbes(encoded[0], encoded[1], kinds, names), [f"s{n}" for n in range(count)]


@pytest.mark.parametrize("held", [1, 2**31])
def test_the_gradient_classifier_equals_one_on_whole_gradients(
    adapted: Adapted, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biasdiff.attribution.gradient_classifier.BLOCK_BYTES", held)
    model, tokenizer = adapted("llama", torch.float64)
    probes, groups = planted_probes(tokenizer, 10)
    parameters = chosen_parameters(model)
    names = list(parameters.sizes)
    lora = {n.replace(".default.", "."): n for n, _ in model.named_parameters()}
    own = [base_name(lora[name]) for name in names]
    rows = torch.stack([slow_gradient(model, e, own) for e in (*probes.more, *probes.less)])
    unit = rows / rows.norm(dim=1, keepdim=True)
    gram, lengths = gram_matrix(model, probes, parameters=parameters, max_tokens=60)
    torch.testing.assert_close(gram.double(), unit @ unit.T, rtol=0, atol=1e-5)
    torch.testing.assert_close(lengths.double(), rows.norm(dim=1), rtol=1e-5, atol=0)
    direction, accuracy = classifier_direction(
        model, probes, groups, parameters=parameters, max_tokens=60, seed=0
    )
    assert accuracy == 1.0
    dense = unit.numpy()
    fitted = fit_pair_classifier(dense[:10], dense[10:], groups, seed=0, standardise=False)
    ours = torch.cat([direction.sums[n].sum(1) for n in names]).double().numpy()
    cosine = ours @ fitted.weights / np.linalg.norm(ours) / np.linalg.norm(fitted.weights)
    assert cosine > 0.9999
    assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(fitted.weights), rel=1e-3)
    assert direction.bias_types == ("age", "gender")
    assert direction.counts == (5, 5)


def test_a_classifier_direction_ranks_a_planted_word(adapted: Adapted) -> None:
    model, tokenizer = adapted("llama")
    probes, groups = planted_probes(tokenizer, 10)
    parameters = chosen_parameters(model)
    direction, _ = classifier_direction(
        model, probes, groups, parameters=parameters, max_tokens=60, seed=0
    )
    texts = [
        f"The nurse {n} said that {who} was late." for n in range(20, 26) for who in ("she", "he")
    ]
    encoded = [encode_text(tokenizer, text) for text in texts]
    comparison = Comparison(TRAIN_SIDES["sgd"](None), direction)
    found = score(model, encoded, {"one": comparison}, Pass(80))["one"].sum(1)
    assert (found[::2] > found[1::2]).all()
