from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biasdiff.attribution.contrast import CONTRAST
from biasdiff.attribution.less import LESS
from biasdiff.attribution.material import EncodedProbes
from biasdiff.attribution.probe_directions import (
    CONTRAST as CONTRAST_KIND,
)
from biasdiff.attribution.probe_directions import (
    PLAIN,
    Kind,
    ProbeDirection,
    probe_directions,
)
from biasdiff.attribution.scores import Scores, typed_scores
from biasdiff.attribution.scoring import Comparison, Pass, score_train_set
from biasdiff.attribution.train_sides import NEEDS_ADAM, TRAIN_SIDES
from biasdiff.data.encoding import Encoding
from biasdiff.errors import ModelError, NonFiniteError
from biasdiff.models.lora import lora_parameters
from biasdiff.training.checkpoints import AdamState
from small_probes import encoded_probes, random_adam
from tiny_models import slow_vector as vector

TYPES = ("age", "gender")
Adapted = Callable[..., tuple[Any, Any]]
Vectors = list[torch.Tensor]


def slow_scores(
    model: Any, train: list[Encoding], probes: EncodedProbes, adam: AdamState, kind: str, side: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score one example at a time from the formulas, with whole concatenated vectors."""
    m = torch.cat([t.double().flatten() for t in adam.exp_avg.values()])
    v = torch.cat([t.double().flatten() for t in adam.exp_avg_sq.values()])
    beta1, beta2 = adam.betas
    t = adam.step + 1
    overall, by_type = [], []
    for example in train:
        g = vector(model, example)
        if side == "less":
            g = (beta1 * m + (1 - beta1) * g) / torch.sqrt(beta2 * v + (1 - beta2) * g**2 + 1e-8)
        elif side == "adam":
            first = (beta1 * m + (1 - beta1) * g) / (1 - beta1**t)
            second = (beta2 * v + (1 - beta2) * g**2) / (1 - beta2**t)
            g = first / (second.sqrt() + adam.eps)
        elif side == "adam_v":
            g = g / (torch.sqrt(beta2 * v + (1 - beta2) * g**2) + adam.eps)
        cosines = []
        for j, more in enumerate(probes.more):
            u = vector(model, more)
            if kind == "contrast":
                u = u - vector(model, probes.less[j])
            cosines.append(torch.dot(g, u) / (g.norm() * u.norm()))
        values = torch.stack(cosines)
        overall.append(values.mean())
        by_type.append(
            torch.stack(
                [values[[kind == name for kind in probes.bias_types]].mean() for name in TYPES]
            )
        )
    return torch.stack(overall), torch.stack(by_type)


def fast_scores(
    model: Any,
    train: list[Encoding],
    probes: EncodedProbes,
    adam: AdamState,
    choices: dict[str, tuple[str, str]],
    *,
    max_tokens: int = 64,
    work: Path | None = None,
) -> dict[str, Scores]:
    """Score with several (probe kind, train side) at once."""
    kinds = [Kind(name) for name in {kind for kind, _ in choices.values()}]
    directions = probe_directions(model, probes, kinds=kinds, max_tokens=max_tokens)
    comparisons = {
        name: Comparison(TRAIN_SIDES[side](adam), directions[Kind(kind)])
        for name, (kind, side) in choices.items()
    }
    names = [f"row-{i}" for i in range(len(train))]
    how = Pass(max_tokens=max_tokens)
    sums, _ = score_train_set(model, train, names, comparisons, how, work=work)
    return {name: scores_of(value, comparisons[name].probe) for name, value in sums.items()}


def scores_of(sums: torch.Tensor, probe: ProbeDirection) -> Scores:
    return typed_scores(sums.double().numpy(), probe.counts, probe.bias_types)


BOTH = {e.name: (e.probe, e.train_side) for e in (CONTRAST, LESS)}


def test_the_estimators_are_those_of_the_readme() -> None:
    assert BOTH == {"contrast": ("contrast", "sgd"), "less": ("plain", "less")}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt-350m", "gemma3"])
@pytest.mark.parametrize("estimator", sorted(BOTH))
def test_scores_equal_the_formulas(
    adapted: Adapted, encodings: list[Encoding], architecture: str, estimator: str
) -> None:
    model, tokenizer = adapted(architecture, torch.float64)
    probes, adam = encoded_probes(tokenizer), random_adam(model)
    fast = fast_scores(model, encodings, probes, adam, BOTH)[estimator]
    overall, by_type = slow_scores(model, encodings, probes, adam, *BOTH[estimator])
    assert fast.bias_types == TYPES
    torch.testing.assert_close(torch.from_numpy(fast.overall), overall, rtol=0, atol=2e-6)
    torch.testing.assert_close(torch.from_numpy(fast.by_type), by_type, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["plain", "contrast"])
@pytest.mark.parametrize("side", sorted(TRAIN_SIDES))
def test_every_probe_with_every_train_side(
    adapted: Adapted, encodings: list[Encoding], kind: str, side: str
) -> None:
    model, tokenizer = adapted("llama")
    probes, adam = encoded_probes(tokenizer), random_adam(model)
    fast = fast_scores(model, encodings, probes, adam, {"one": (kind, side)})["one"]
    overall, by_type = slow_scores(model, encodings, probes, adam, kind, side)
    torch.testing.assert_close(torch.from_numpy(fast.overall), overall, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(fast.by_type), by_type, rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_scores_do_not_depend_on_the_token_budget(
    adapted: Adapted, encodings: list[Encoding], max_tokens: int
) -> None:
    model, tokenizer = adapted("llama", torch.float64)
    probes, adam = encoded_probes(tokenizer), random_adam(model)
    expected = fast_scores(model, encodings, probes, adam, BOTH, max_tokens=100)
    found = fast_scores(model, encodings, probes, adam, BOTH, max_tokens=max_tokens)
    for name, scores in expected.items():
        np.testing.assert_allclose(found[name].by_type, scores.by_type, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[name].overall, scores.overall, rtol=0, atol=1e-6)


def test_scores_do_not_depend_on_the_order(adapted: Adapted, encodings: list[Encoding]) -> None:
    model, tokenizer = adapted("llama", torch.float64)
    probes, adam = encoded_probes(tokenizer), random_adam(model)
    forward = fast_scores(model, encodings, probes, adam, BOTH)
    backward = fast_scores(model, encodings[::-1], probes, adam, BOTH)
    for name, scores in forward.items():
        np.testing.assert_allclose(backward[name].overall[::-1], scores.overall, rtol=0, atol=1e-6)


def test_chunks_on_disk_are_taken_up_again(
    adapted: Adapted,
    encodings: list[Encoding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("biasdiff.attribution.scoring.BATCHES_A_CHUNK", 2)
    model, tokenizer = adapted("llama")
    probes, adam = encoded_probes(tokenizer), random_adam(model)

    def run() -> dict[str, Scores]:
        return fast_scores(model, encodings, probes, adam, BOTH, max_tokens=30, work=tmp_path)

    whole = run()
    chunks = sorted(tmp_path.glob("*.safetensors"))
    assert len(chunks) >= 3
    assert sorted(tmp_path.iterdir()) == chunks, "a temporary file is left"
    chunks[1].unlink()
    computed: list[int] = []
    from biasdiff.attribution import scoring

    score_batch = scoring.score_batch

    def counting(model: Any, batch: dict[str, torch.Tensor], *rest: Any, **named: Any) -> Any:
        computed.append(len(batch["input_ids"]))
        return score_batch(model, batch, *rest, **named)

    monkeypatch.setattr(scoring, "score_batch", counting)
    again = run()
    assert len(computed) == 2, "only the missing chunk is computed"
    for name, scores in whole.items():
        assert np.array_equal(again[name].overall, scores.overall)
        assert np.array_equal(again[name].by_type, scores.by_type)


def test_an_interrupted_pass_goes_on(
    adapted: Adapted,
    encodings: list[Encoding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from biasdiff.attribution import scoring

    monkeypatch.setattr(scoring, "BATCHES_A_CHUNK", 1)
    model, tokenizer = adapted("llama")
    probes, adam = encoded_probes(tokenizer), random_adam(model)
    whole = fast_scores(model, encodings, probes, adam, BOTH, max_tokens=30)
    score_batch = scoring.score_batch
    calls = []

    def killed(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score_batch(*arguments, **named)

    monkeypatch.setattr(scoring, "score_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        fast_scores(model, encodings, probes, adam, BOTH, max_tokens=30, work=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    again = fast_scores(model, encodings, probes, adam, BOTH, max_tokens=30, work=tmp_path)
    for name, scores in whole.items():
        assert np.array_equal(again[name].overall, scores.overall)


def test_timing_counts_what_was_not_resumed(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path
) -> None:
    model, tokenizer = adapted("llama")
    probes = encoded_probes(tokenizer)
    directions = probe_directions(model, probes, kinds=[PLAIN], max_tokens=64)
    comparisons = {"one": Comparison(TRAIN_SIDES["sgd"](None), directions[PLAIN])}
    names = [str(i) for i in range(len(encodings))]
    for examples in (len(encodings), 0):
        _, timing = score_train_set(
            model, encodings, names, comparisons, Pass(max_tokens=64), work=tmp_path
        )
        assert timing["examples"] == examples
        assert timing["tokens"] == (sum(map(len, encodings)) if examples else 0)


def without_gradient(adapted: Adapted) -> tuple[Any, Any, Encoding]:
    """Return a model, and an example for which its adapter's gradient is exactly zero.

    A query cannot matter where there is one position to attend to. Fused attention leaves a
    rounding error there, eager attention does not.
    """
    model, tokenizer = adapted("llama", torch.float64, targets=["q_proj"])
    model.set_attn_implementation("eager")
    nothing = Encoding([0, 9], [-100, 9])
    assert vector(model, nothing).abs().max() == 0
    return model, tokenizer, nothing


def test_a_zero_gradient_scores_zero(adapted: Adapted, encodings: list[Encoding]) -> None:
    model, tokenizer, nothing = without_gradient(adapted)
    train = [encodings[0], nothing, encodings[1]]
    choices = {"contrast": ("contrast", "sgd"), "plain": ("plain", "sgd")}
    scores = fast_scores(model, train, encoded_probes(tokenizer), random_adam(model), choices)
    for found in scores.values():
        assert found.overall[1] == 0
        assert found.by_type[1].tolist() == [0, 0]
        assert (found.overall[[0, 2]] != 0).all()


def test_a_probe_without_gradient_counts_as_zero_cosine(
    adapted: Adapted, encodings: list[Encoding]
) -> None:
    model, _, nothing = without_gradient(adapted)
    probes = EncodedProbes([encodings[0], nothing], [], ["a", "a"], ["0", "1"])
    alone = EncodedProbes([encodings[0]], [], ["a"], ["0"])
    both, one = (
        fast_scores(model, encodings[1:4], p, random_adam(model), {"x": ("plain", "sgd")})["x"]
        for p in (probes, alone)
    )
    torch.testing.assert_close(both.overall, one.overall / 2)


def test_an_example_scores_one_against_itself(adapted: Adapted, encodings: list[Encoding]) -> None:
    model, _ = adapted("gpt2")
    probes = EncodedProbes([encodings[2]], [], ["a"], ["0"])
    scores = fast_scores(model, encodings, probes, random_adam(model), {"x": ("plain", "sgd")})["x"]
    assert float(scores.overall[2]) == pytest.approx(1, abs=1e-5)
    assert int(scores.overall.argmax()) == 2


def test_non_finite_examples_are_named(adapted: Adapted, encodings: list[Encoding]) -> None:
    model, tokenizer = adapted("opt")
    probes, adam = encoded_probes(tokenizer), random_adam(model)
    directions = probe_directions(model, probes, kinds=[PLAIN], max_tokens=64)
    comparisons = {"one": Comparison(TRAIN_SIDES["less"](adam), directions[PLAIN])}
    # A token that only the last example contains gets a NaN embedding.
    used = {token for e in encodings for token in e.input_ids}
    token = next(i for i in range(2, len(tokenizer)) if i not in used)
    alien = Encoding([0, 5, token, 6], [-100, 5, token, 6])
    embeddings = model.get_input_embeddings()
    embeddings.weight.data[token] = float("nan")
    model.get_output_embeddings().weight = torch.nn.Parameter(
        embeddings.weight.data.nan_to_num().clone(), requires_grad=False
    )
    train = [*encodings[:3], alien]
    with pytest.raises(NonFiniteError, match=r"loss or gradient is not finite for the-alien;"):
        score_train_set(model, train, ["a", "b", "c", "the-alien"], comparisons, Pass(500))


def test_many_non_finite_examples_are_counted(adapted: Adapted, encodings: list[Encoding]) -> None:
    model, tokenizer = adapted("llama")
    directions = probe_directions(model, encoded_probes(tokenizer), kinds=[PLAIN], max_tokens=64)
    next(p for _, p in lora_parameters(model)).data.fill_(float("nan"))
    comparisons = {"one": Comparison(TRAIN_SIDES["sgd"](None), directions[PLAIN])}
    names = [f"n{i}" for i in range(len(encodings))]
    with pytest.raises(NonFiniteError, match=r"n\d, .* and 2 more; expected finite losses"):
        score_train_set(model, encodings, names, comparisons, Pass(5000))


def test_non_finite_probes_are_named(adapted: Adapted) -> None:
    model, tokenizer = adapted("llama")
    next(p for _, p in lora_parameters(model)).data.fill_(float("inf"))
    with pytest.raises(
        NonFiniteError, match=r"gradient of \d probe sentences is not finite: probe row \d"
    ):
        probe_directions(model, encoded_probes(tokenizer), kinds=[CONTRAST_KIND], max_tokens=500)


@pytest.mark.parametrize("side", sorted(NEEDS_ADAM))
def test_missing_adam_state_names_the_ways_out(side: str) -> None:
    with pytest.raises(
        ModelError, match=f"no Adam state, which the train side '{side}' needs"
    ) as e:
        TRAIN_SIDES[side](None)
    for remedy in ("'contrast'", "sgd", "biasdiff warmup", "optimizer.pt"):
        assert remedy in str(e.value)


def test_the_sgd_side_needs_no_adam_state() -> None:
    gradients = torch.randn(2, 3)
    assert TRAIN_SIDES["sgd"](None)("any", gradients) is gradients


@pytest.mark.parametrize(
    "kinds", [{PLAIN}, {CONTRAST_KIND}, {PLAIN, CONTRAST_KIND, Kind("plain", unit=False)}]
)
@pytest.mark.parametrize("held", [1, 2**30])
def test_probe_directions_equal_their_formula(
    adapted: Adapted, kinds: set[Kind], held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("biasdiff.attribution.probe_directions.MAX_HELD_BYTES", held)
    model, tokenizer = adapted("qwen2", torch.float64)
    probes = encoded_probes(tokenizer)
    found = probe_directions(model, probes, kinds=kinds, max_tokens=80)
    assert set(found) == kinds
    for kind, direction in found.items():
        assert direction.bias_types == TYPES
        assert direction.counts == (2, 3)
        expected = slow_direction(model, probes, kind)
        sums = torch.cat([direction.sums[name] for name, _ in lora_parameters(model)])
        torch.testing.assert_close(sums.double(), expected, rtol=0, atol=1e-5)


def slow_direction(model: Any, probes: EncodedProbes, kind: Kind) -> torch.Tensor:
    columns: dict[str, Vectors] = {name: [] for name in TYPES}
    for j, bias_type in enumerate(probes.bias_types):
        u = vector(model, probes.more[j])
        if kind.name == "contrast":
            u = u - vector(model, probes.less[j])
        columns[bias_type].append(u / u.norm() if kind.unit else u)
    return torch.stack([torch.stack(columns[name]).sum(0) for name in TYPES], dim=1)


def test_plain_directions_need_no_twins(adapted: Adapted) -> None:
    model, tokenizer = adapted("llama")
    with_twins, without = (
        probe_directions(model, encoded_probes(tokenizer, twins=t), kinds=[PLAIN], max_tokens=80)
        for t in (True, False)
    )
    a, b = with_twins[PLAIN], without[PLAIN]
    assert isinstance(a, ProbeDirection)
    for name, sums in a.sums.items():
        torch.testing.assert_close(sums, b.sums[name])
