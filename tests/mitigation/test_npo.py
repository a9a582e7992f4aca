from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.errors import DataError, NonFiniteError
from biasdiff.functional.losses import sequence_log_probs
from biasdiff.mitigation import npo
from biasdiff.mitigation.npo import NpoSettings, forget_and_retain_loss, unlearn
from biasdiff.models.lora import lora_parameters
from biasdiff.training.fine_tuning import TrainingSettings
from biasdiff.training.token_scores import log_likelihoods

Loader = Callable[..., tuple[Any, Any]]
TRAINING = TrainingSettings(epochs=4, batch_size=2, learning_rate=5e-3, seed=2)


def start(
    model: Any,
    forget: list[Encoding],
    retain: list[Encoding],
    folder: Path,
    settings: NpoSettings = NpoSettings(beta=0.5),  # noqa: B008
    training: TrainingSettings = TRAINING,
) -> list[dict[str, float]]:
    names = [f"row-{i}" for i in range(len(forget))]
    return unlearn(model, forget, retain, names, training, settings, folder, max_tokens=100)


def log_prob(model: Any, encoding: Encoding) -> torch.Tensor:
    ids, labels = torch.tensor([encoding.input_ids]), torch.tensor([encoding.labels])
    with torch.no_grad():
        return sequence_log_probs(model(input_ids=ids).logits, labels)[0]


@pytest.mark.parametrize("retain_weight", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_loss_by_hand(
    adapted: Loader, encodings: list[Encoding], beta: float, retain_weight: float
) -> None:
    biased, _ = adapted("llama", torch.float64)
    forget, retain = encodings[:2], encodings[2:4]
    reference = [float(log_prob(biased, e)) for e in forget]
    for _, parameter in lora_parameters(biased):
        parameter.data.mul_(0.7)  # the model moves away from its reference
    batch = make_batch(forget + (retain if retain_weight else []))
    batch["reference"] = torch.tensor(reference, dtype=torch.float64)
    loss = forget_and_retain_loss(NpoSettings(beta, retain_weight))
    expected = 0.0
    for encoding, before in zip(forget, reference, strict=True):
        difference = float(log_prob(biased, encoding)) - before
        assert abs(difference) > 0.01
        expected += 2 / beta * math.log(1 + math.exp(beta * difference)) / len(forget)
    tokens = sum(e.targets for e in retain)
    expected -= retain_weight * sum(float(log_prob(biased, e)) for e in retain) / tokens
    assert float(loss(biased, batch, None).detach()) == pytest.approx(expected, rel=1e-6)


def test_the_first_loss_is_that_of_the_reference_itself(
    adapted: Loader, encodings: list[Encoding], tmp_path: Path
) -> None:
    model, _ = adapted("llama")
    one = TrainingSettings(epochs=1, batch_size=10, learning_rate=1e-4)
    log = start(model, encodings[:5], [], tmp_path, NpoSettings(0.5, 0.0), one)
    assert log[0]["loss"] == pytest.approx(2 / 0.5 * math.log(2), rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_unlearning_lowers_the_forget_set_and_keeps_the_retain_set(
    adapted: Loader, encodings: list[Encoding], tmp_path: Path, architecture: str
) -> None:
    forget, retain = encodings[:4], encodings[4:]
    kept = {}
    for weight in (0.0, 2.0):
        model, _ = adapted(architecture)
        before = log_likelihoods(model, forget, max_tokens=100)
        training = replace(TRAINING, epochs=6, learning_rate=2e-2)
        log = start(model, forget, retain, tmp_path, NpoSettings(0.5, weight), training)
        after = log_likelihoods(model, forget, max_tokens=100)
        assert (after < before).all()
        assert after.mean() < before.mean() - 5
        assert log[-1]["loss"] < log[0]["loss"]
        assert not list(tmp_path.iterdir()), "something is left of the run"
        kept[weight] = log_likelihoods(model, retain, max_tokens=100).mean()
    assert kept[2.0] > kept[0.0] + 1


def test_the_reference_is_the_model_before_training(
    adapted: Loader,
    encodings: list[Encoding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = adapted("llama")
    forget, retain = encodings[:4], encodings[4:]
    expected = log_likelihoods(model, forget, max_tokens=100)
    seen: dict[int, float] = {}
    make = npo.forget_and_retain_loss

    def spy(settings: NpoSettings) -> Any:
        loss = make(settings)

        def record(model: Any, batch: Any, targets: Any) -> torch.Tensor:
            for index, value in zip(batch["index"], batch["reference"], strict=True):
                assert seen.setdefault(int(index), float(value)) == float(value)
            return loss(model, batch, targets)

        return record

    monkeypatch.setattr(npo, "forget_and_retain_loss", spy)
    start(model, forget, retain, tmp_path)
    assert [seen[i] for i in range(4)] == pytest.approx(list(expected), abs=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    adapted: Loader,
    encodings: list[Encoding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weight: float,
) -> None:
    settings, forget, retain = NpoSettings(0.5, weight), encodings[:4], encodings[4:]
    calm, _ = adapted("llama", dropout=0.2)
    start(calm, forget, retain, tmp_path / "calm", settings)
    make, calls = npo.forget_and_retain_loss, []

    def killed(settings: NpoSettings) -> Any:
        loss = make(settings)

        def count(*arguments: Any) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 4:  # in the second epoch
                raise KeyboardInterrupt
            return loss(*arguments)

        return count

    disturbed, _ = adapted("llama", dropout=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(npo, "forget_and_retain_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            start(disturbed, forget, retain, tmp_path / "disturbed", settings)
    resumed, _ = adapted("llama", dropout=0.2)  # the biased model again, as a new process loads it
    start(resumed, forget, retain, tmp_path / "disturbed", settings)
    for (name, a), (_, b) in zip(lora_parameters(calm), lora_parameters(resumed), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("forget", "retain"), [(3, 10), (10, 3), (4, 4), (1, 1)])
def test_retain_partners_are_used_evenly(forget: int, retain: int) -> None:
    rows = npo._partners(forget, retain, seed=0)
    assert len(rows) == forget
    counts = Counter(rows)
    assert set(counts) <= set(range(retain))
    uses = [counts[i] for i in range(retain)]
    assert max(uses) - min(uses) <= 1


def test_partners_follow_the_seed() -> None:
    assert npo._partners(20, 30, seed=1) == npo._partners(20, 30, seed=1)
    assert npo._partners(20, 30, seed=1) != npo._partners(20, 30, seed=2)
    assert npo._partners(5, 0, seed=1) == []


@pytest.mark.parametrize(("forget", "retain"), [(0, 4), (4, 0), (0, 0)])
def test_empty_sides_are_refused(
    adapted: Loader, encodings: list[Encoding], tmp_path: Path, forget: int, retain: int
) -> None:
    model, _ = adapted("llama")
    with pytest.raises(
        DataError,
        match=f"the forget set has {forget} examples and the retain set {retain}; expected",
    ):
        start(model, encodings[:forget], encodings[:retain], tmp_path)


def test_a_loss_that_is_not_finite_names_its_examples(
    adapted: Loader, encodings: list[Encoding], tmp_path: Path
) -> None:
    model, _ = adapted("llama")
    used = {token for e in encodings for token in e.input_ids}
    token = next(i for i in range(2, 320) if i not in used)
    model.get_input_embeddings().weight.data[token] = float("nan")
    alien = Encoding([0, 5, token, 6], [-100, 5, token, 6])
    # In the retain set: the reference pass sees the forget set alone.
    with pytest.raises(NonFiniteError, match=r"training loss became nan .* of row-\d, row-\d"):
        start(model, encodings[:2], [alien], tmp_path)
