from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from biasdiff.attribution.material import EncodedProbes
from biasdiff.attribution.probe_directions import CONTRAST, PLAIN, probe_directions
from biasdiff.attribution.scoring import Comparison, Pass, score_train_set
from biasdiff.attribution.train_sides import TRAIN_SIDES
from biasdiff.data.encoding import Encoding
from biasdiff.errors import ModelError
from biasdiff.models.lora import load_adapter, lora_parameters
from biasdiff.training.checkpoints import (
    ADAM_FILE,
    INFO_FILE,
    TRAINER_FILE,
    AdamState,
    CheckpointInfo,
    live_adam_state,
    load_adam_state,
    load_info,
    save_checkpoint,
)
from biasdiff.training.fine_tuning import TrainingSettings
from biasdiff.training.warmup import warm_up
from tiny_models import ARCHITECTURES

Adapted = Callable[..., tuple[Any, Any]]
BETAS = (0.85, 0.98)
INFO = CheckpointInfo(
    epoch=3,
    step=4,
    betas=BETAS,
    eps=1e-7,
    mean_learning_rate=1.5e-4,
    loss_average="token",
    max_grad_norm=1.0,
)


def trained(model: Any, encodings: list[Encoding]) -> torch.optim.Optimizer:
    """Take four Adam steps on the adapter."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=BETAS, eps=1e-7)
    for encoding in encodings[:4]:
        optimizer.zero_grad()
        labels = torch.tensor([encoding.labels])
        model(input_ids=torch.tensor([encoding.input_ids]), labels=labels).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_comes_back_as_it_was_saved(
    adapted: Adapted,
    tiny: Adapted,
    encodings: list[Encoding],
    tmp_path: Path,
    architecture: str,
) -> None:
    model, _ = adapted(architecture)
    adam = live_adam_state(model, trained(model, encodings))
    save_checkpoint(tmp_path / "epoch-3", model, adam, INFO)
    restored = load_adapter(tiny(architecture)[0], tmp_path / "epoch-3")
    for (name, a), (other, b) in zip(
        lora_parameters(model), lora_parameters(restored), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    found = load_adam_state(tmp_path / "epoch-3", restored)
    assert found is not None
    assert (found.step, found.betas, found.eps) == (4, BETAS, 1e-7)
    for name, _ in lora_parameters(model):
        assert torch.equal(found.exp_avg[name], adam.exp_avg[name])
        assert torch.equal(found.exp_avg_sq[name], adam.exp_avg_sq[name])
    assert load_info(tmp_path / "epoch-3") == INFO
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-3"]


def test_moments_carry_the_names_of_the_saved_adapter(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path
) -> None:
    model, _ = adapted("llama")
    optimizer = trained(model, encodings)
    adam = live_adam_state(model, optimizer)
    save_checkpoint(tmp_path / "c", model, adam, INFO)
    weights = load_file(tmp_path / "c" / "adapter_model.safetensors")
    named = dict(lora_parameters(model))
    assert set(weights) == set(adam.exp_avg) == set(adam.exp_avg_sq) == set(named)
    for name, parameter in named.items():
        state = optimizer.state[parameter]
        assert torch.equal(adam.exp_avg[name], state["exp_avg"])
        assert torch.equal(adam.exp_avg_sq[name], state["exp_avg_sq"])
        assert torch.equal(weights[name], parameter)


def test_saving_replaces_the_folder_whole(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path
) -> None:
    model, _ = adapted("llama")
    adam = live_adam_state(model, trained(model, encodings))
    folder, leftover = tmp_path / "c", tmp_path / "c.part"
    for stale in (folder, leftover):
        stale.mkdir()
        (stale / "stale").touch()
    save_checkpoint(folder, model, adam, INFO)
    assert not (folder / "stale").exists()
    assert not leftover.exists()


def scores(model: Any, encodings: list[Encoding], adam: AdamState) -> dict[str, torch.Tensor]:
    probes = EncodedProbes(encodings[:2], encodings[2:4], ["a", "b"], ["0", "1"])
    directions = probe_directions(model, probes, kinds=[PLAIN, CONTRAST], max_tokens=64)
    comparisons = {
        f"{kind.name} {side}": Comparison(make(adam), directions[kind])
        for kind in (PLAIN, CONTRAST)
        for side, make in TRAIN_SIDES.items()
    }
    names = [str(i) for i in range(len(encodings))]
    return score_train_set(model, encodings, names, comparisons, Pass(max_tokens=64))[0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_after_reloading_are_those_of_the_live_model(
    adapted: Adapted,
    tiny: Adapted,
    encodings: list[Encoding],
    tmp_path: Path,
    architecture: str,
) -> None:
    model, _ = adapted(architecture)
    adam = live_adam_state(model, trained(model, encodings))
    save_checkpoint(tmp_path / "c", model, adam, INFO)
    live = scores(model, encodings, adam)
    restored = load_adapter(tiny(architecture)[0], tmp_path / "c")
    moments = load_adam_state(tmp_path / "c", restored)
    assert moments is not None
    for name, values in scores(restored, encodings, moments).items():
        assert torch.equal(values, live[name]), name


def trainer_checkpoint(
    model: Any, encodings: list[Encoding], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Run a real Trainer and return the last folder it saved, optimizer.pt and adapter in it."""
    monkeypatch.setattr("shutil.rmtree", lambda *a, **k: None)
    settings = TrainingSettings(epochs=2, batch_size=4, learning_rate=1e-3)
    warm_up(model, encodings, list("0123456789"), settings, folder)
    return max((folder / "trainer").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_a_trainers_optimizer_file_is_understood(
    adapted: Adapted,
    encodings: list[Encoding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
) -> None:
    model, _ = adapted(architecture)
    folder = trainer_checkpoint(model, encodings, tmp_path, monkeypatch)
    assert (folder / TRAINER_FILE).is_file()
    assert not (folder / ADAM_FILE).exists()
    found = load_adam_state(folder, model)
    ours = load_adam_state(tmp_path / "checkpoints" / "epoch-2", model)
    assert found is not None
    assert ours is not None
    assert (found.step, found.betas, found.eps) == (ours.step, ours.betas, ours.eps)
    assert list(found.exp_avg) == [name for name, _ in lora_parameters(model)]
    for name, tensor in ours.exp_avg.items():
        assert torch.equal(found.exp_avg[name], tensor), name
        assert torch.equal(found.exp_avg_sq[name], ours.exp_avg_sq[name]), name


def test_a_folder_without_moments_gives_none(adapted: Adapted, tmp_path: Path) -> None:
    assert load_adam_state(tmp_path, adapted("llama")[0]) is None


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("writer", ["torch.save", "pickle.dump"])
def test_a_malicious_optimizer_file_is_refused_not_executed(
    adapted: Adapted, tmp_path: Path, writer: str
) -> None:
    marker = tmp_path / "executed"
    record = {"state": Malicious(marker), "param_groups": []}
    if writer == "torch.save":
        torch.save(record, tmp_path / TRAINER_FILE)
    else:
        (tmp_path / TRAINER_FILE).write_bytes(pickle.dumps(record))
    with pytest.raises(ModelError, match=r"optimizer\.pt cannot be read .*expected Adam moments"):
        load_adam_state(tmp_path, adapted("llama")[0])
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 half a zip"])
def test_a_broken_optimizer_file(adapted: Adapted, tmp_path: Path, content: bytes) -> None:
    (tmp_path / TRAINER_FILE).write_bytes(content)
    with pytest.raises(ModelError, match=r"optimizer\.pt cannot be read"):
        load_adam_state(tmp_path, adapted("llama")[0])


def test_an_optimizer_file_of_another_kind(adapted: Adapted, tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / TRAINER_FILE)
    with pytest.raises(ModelError, match=r"optimizer\.pt cannot be read \(KeyError"):
        load_adam_state(tmp_path, adapted("llama")[0])


def test_an_optimizer_with_another_number_of_parameters(adapted: Adapted, tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / TRAINER_FILE)
    with pytest.raises(ModelError, match="holds 1 parameters; expected Adam moments of the adapt"):
        load_adam_state(tmp_path, adapted("llama")[0])


def test_an_optimizer_without_moments(adapted: Adapted, tmp_path: Path) -> None:
    model, _ = adapted("llama")
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.save(torch.optim.SGD(parameters, lr=0.1).state_dict(), tmp_path / TRAINER_FILE)
    with pytest.raises(ModelError, match=r"holds \d+ parameters; expected Adam moments"):
        load_adam_state(tmp_path, model)


@pytest.mark.parametrize("rank", [2, 5])
def test_moments_of_another_rank_are_refused(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path, rank: int
) -> None:
    model, _ = adapted("llama", rank=3)
    save_checkpoint(tmp_path / "c", model, live_adam_state(model, trained(model, encodings)), INFO)
    other, _ = adapted("llama", rank=rank)
    with pytest.raises(ModelError, match=r"moments in .* do not fit the adapter, .* at base_model"):
        load_adam_state(tmp_path / "c", other)


def test_moments_of_other_targets_are_refused(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path
) -> None:
    model, _ = adapted("llama", targets=["q_proj"])
    save_checkpoint(tmp_path / "c", model, live_adam_state(model, trained(model, encodings)), INFO)
    other, _ = adapted("llama", targets=["q_proj", "v_proj"])
    with pytest.raises(ModelError, match="use adapter and moments of one checkpoint"):
        load_adam_state(tmp_path / "c", other)


def test_a_second_moment_that_lacks_a_parameter_is_refused(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path
) -> None:
    model, _ = adapted("llama")
    adam = live_adam_state(model, trained(model, encodings))
    adam.exp_avg_sq.pop(next(iter(adam.exp_avg_sq)))
    save_checkpoint(tmp_path / "c", model, adam, INFO)
    with pytest.raises(ModelError, match="do not fit the adapter"):
        load_adam_state(tmp_path / "c", model)


def test_truncated_moments(adapted: Adapted, encodings: list[Encoding], tmp_path: Path) -> None:
    model, _ = adapted("llama")
    save_checkpoint(tmp_path / "c", model, live_adam_state(model, trained(model, encodings)), INFO)
    file = tmp_path / "c" / ADAM_FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"adam\.safetensors cannot be read"):
        load_adam_state(tmp_path / "c", model)


def test_moments_without_their_record(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path
) -> None:
    model, _ = adapted("llama")
    save_checkpoint(tmp_path / "c", model, live_adam_state(model, trained(model, encodings)), INFO)
    (tmp_path / "c" / INFO_FILE).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_adam_state(tmp_path / "c", model)


def test_the_record_is_plain_json(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path
) -> None:
    model, _ = adapted("llama")
    save_checkpoint(tmp_path / "c", model, live_adam_state(model, trained(model, encodings)), INFO)
    record = json.loads((tmp_path / "c" / INFO_FILE).read_text())
    assert record["max_grad_norm"] == 1.0
    assert record["loss_average"] == "token"


def test_adapters_loaded_for_training_are_trainable(
    adapted: Adapted, tiny: Adapted, tmp_path: Path
) -> None:
    model, _ = adapted("llama")
    model.save_pretrained(tmp_path)
    for trainable in (True, False):
        restored = load_adapter(tiny("llama")[0], tmp_path, trainable=trainable)
        assert all(p.requires_grad is trainable for _, p in lora_parameters(restored))
