from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.data.records import TrainExample
from biasdiff.errors import NonFiniteError
from biasdiff.models.lora import lora_parameters
from biasdiff.training import warmup
from biasdiff.training.checkpoints import load_adam_state, load_info
from biasdiff.training.fine_tuning import BucketSampler, TrainingSettings
from biasdiff.training.warmup import (
    example_mean_loss,
    stratified_sample,
    token_mean_loss,
    warm_up,
)
from tiny_models import slow_gradients

Adapted = Callable[..., tuple[Any, Any]]
SETTINGS = TrainingSettings(epochs=3, batch_size=3, learning_rate=5e-3, seed=5)


def names(encodings: list[Encoding]) -> list[str]:
    return [f"row-{i}" for i in range(len(encodings))]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in lora_parameters(model)}


def run(
    model: Any, encodings: list[Encoding], settings: TrainingSettings, folder: Path
) -> list[dict[str, float]]:
    return warm_up(model, encodings, names(encodings), settings, folder)


def test_warm_up_writes_a_checkpoint_an_epoch_and_learns(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path
) -> None:
    model, _ = adapted("llama")
    log = run(model, encodings, SETTINGS, tmp_path)
    assert [entry["epoch"] for entry in log] == [1, 2, 3]
    assert log[-1]["loss"] < log[0]["loss"]
    assert all(entry["grad_norm"] > 0 for entry in log)
    assert not model.training
    folders = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert folders == ["epoch-1", "epoch-2", "epoch-3"]
    assert not (tmp_path / "trainer").exists()
    infos = [load_info(tmp_path / "checkpoints" / name) for name in folders]
    assert [(i.epoch, i.step) for i in infos] == [(1, 4), (2, 8), (3, 12)]
    assert [i.mean_learning_rate for i in infos] == sorted(
        (i.mean_learning_rate for i in infos), reverse=True
    )
    assert infos[0].betas == (0.9, 0.999)
    last = load_file(tmp_path / "checkpoints" / "epoch-3" / "adapter_model.safetensors")
    assert all(torch.equal(last[name], value) for name, value in weights(model).items())


def test_the_same_seed_gives_the_same_bytes(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path
) -> None:
    found = []
    for index, seed in enumerate((1, 1, 2)):
        model, _ = adapted("llama", dropout=0.2)
        run(model, encodings, replace(SETTINGS, epochs=1, seed=seed), tmp_path / str(index))
        found.append(weights(model))
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert not all(torch.equal(found[0][n], found[2][n]) for n in found[0])


@pytest.mark.parametrize("killed_at", [1, 5, 6, 12])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    adapted: Adapted,
    encodings: list[Encoding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: int,
) -> None:
    calm, _ = adapted("llama", dropout=0.3)
    log = run(calm, encodings, SETTINGS, tmp_path / "calm")

    calls: list[int] = []

    def killed(model: Any, batch: Any, targets: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return token_mean_loss(model, batch, targets)

    disturbed, _ = adapted("llama", dropout=0.3)
    with monkeypatch.context() as patch:
        patch.setitem(warmup.LOSSES, "token", killed)
        with pytest.raises(KeyboardInterrupt):
            run(disturbed, encodings, SETTINGS, tmp_path / "disturbed")
    torch.manual_seed(99)  # the random state of another process
    resumed, _ = adapted("llama", dropout=0.3)
    done_again: list[int] = []

    def counted(model: Any, batch: Any, targets: Any) -> torch.Tensor:
        done_again.append(1)
        return token_mean_loss(model, batch, targets)

    monkeypatch.setitem(warmup.LOSSES, "token", counted)
    again = run(resumed, encodings, SETTINGS, tmp_path / "disturbed")
    assert len(done_again) == 12 - (killed_at - 1) // 4 * 4, "whole epochs are not done again"
    for name, value in weights(calm).items():
        assert torch.equal(value, weights(resumed)[name]), name
    for epoch in (1, 2, 3):
        moments = [
            load_file(tmp_path / who / "checkpoints" / f"epoch-{epoch}" / "adam.safetensors")
            for who in ("calm", "disturbed")
        ]
        assert all(torch.equal(moments[0][n], moments[1][n]) for n in moments[0]), epoch
    assert again == log
    infos = [load_info(tmp_path / who / "checkpoints" / "epoch-3") for who in ("calm", "disturbed")]
    assert infos[0] == infos[1]


def test_killed_after_the_last_epoch(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from biasdiff.training import fine_tuning

    model, _ = adapted("llama", dropout=0.3)
    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning.shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(model, encodings, SETTINGS, tmp_path)
    resumed, _ = adapted("llama", dropout=0.3)
    log = run(resumed, encodings, SETTINGS, tmp_path)
    assert len(log) == 3
    assert all(torch.equal(v, weights(resumed)[n]) for n, v in weights(model).items())


def interrupt(path: Any, *arguments: Any, **keywords: Any) -> None:
    if Path(path).name == "trainer":
        raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["trainer_state.json missing", "trainer_state.json halved"])
def test_a_half_written_trainer_checkpoint_is_dropped(
    adapted: Adapted,
    encodings: list[Encoding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    from biasdiff.training.fine_tuning import _last_whole_checkpoint

    for step in (4, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(
            f'{{"global_step": {step}}}'
        )
    state = tmp_path / "checkpoint-12" / "trainer_state.json"
    if damage.endswith("missing"):
        state.unlink()
    else:
        state.write_text(state.read_text()[:8])
    assert _last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert not (tmp_path / "checkpoint-12").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_examples(
    adapted: Adapted, encodings: list[Encoding], tmp_path: Path, value: float
) -> None:
    model, _ = adapted("llama")
    used = {token for e in encodings for token in e.input_ids}
    token = next(i for i in range(2, 320) if i not in used)
    model.get_input_embeddings().weight.data[token] = value
    alien = Encoding([0, 5, token, 6], [-100, 5, token, 6])
    with pytest.raises(
        NonFiniteError, match=r"training loss became nan at step \d, in the batch of"
    ) as error:
        run(model, [*encodings[:5], alien], SETTINGS, tmp_path)
    assert "row-5" in str(error.value)
    assert "lower the learning rate" in str(error.value)
    assert len([n for n in names(encodings) if n in str(error.value)]) <= SETTINGS.batch_size


def one_step(
    adapted: Adapted, encodings: list[Encoding], folder: Path, **changes: Any
) -> dict[str, torch.Tensor]:
    """Return the first moments after one optimizer step: 0.1 times the gradient."""
    model, _ = adapted("llama", torch.float64)
    settings = replace(SETTINGS, epochs=1, max_grad_norm=0.0, **changes)
    warm_up(model, encodings, names(encodings), settings, folder)
    adam = load_adam_state(folder / "checkpoints" / "epoch-1", model)
    assert adam is not None
    assert adam.step == 1
    return {name: moment / 0.1 for name, moment in adam.exp_avg.items()}


@pytest.mark.parametrize(
    ("loss_average", "sizes"),
    [
        *(("token", sizes) for sizes in [(10, 1), (5, 2), (2, 5), (3, 4)]),
        # No (3, 4): of ten examples the last would then make a micro-batch alone and weigh thrice.
        *(("example", sizes) for sizes in [(10, 1), (5, 2), (2, 5)]),
    ],
)
def test_accumulation_gives_the_update_of_one_big_batch(
    adapted: Adapted,
    encodings: list[Encoding],
    tmp_path: Path,
    loss_average: str,
    sizes: tuple[int, int],
) -> None:
    found = one_step(
        adapted,
        encodings,
        tmp_path,
        batch_size=sizes[0],
        accumulation=sizes[1],
        loss_average=loss_average,
    )
    model, _ = adapted("llama", torch.float64)
    slow = [slow_gradients(model, e) for e in encodings]
    counts = [e.targets if loss_average == "token" else 1 for e in encodings]
    for name, gradient in found.items():
        expected = sum(n * g[name] for n, g in zip(counts, slow, strict=True)) / sum(counts)
        # Llama's norms pass gradients on in float32, whose rounding depends on the loss's scale.
        assert (gradient - expected).norm() < 1e-6 * expected.norm(), name


def test_losses_of_a_batch(adapted: Adapted, encodings: list[Encoding]) -> None:
    model, _ = adapted("llama", torch.float64)
    batch = make_batch(encodings)
    alone = [example_mean_loss(model, make_batch([e]), None) for e in encodings]
    totals = [loss * e.targets for loss, e in zip(alone, encodings, strict=True)]
    targets = sum(e.targets for e in encodings)
    torch.testing.assert_close(example_mean_loss(model, batch, None), torch.stack(alone).mean())
    torch.testing.assert_close(
        token_mean_loss(model, batch, None), torch.stack(totals).sum() / targets
    )
    torch.testing.assert_close(
        token_mean_loss(model, batch, 2 * targets), torch.stack(totals).sum() / (2 * targets)
    )


def order(lengths: list[int], seed: int, epoch: int, batch_size: int = 4) -> list[int]:
    sampler = BucketSampler(lengths, batch_size, seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(lengths)
    return list(sampler)


LENGTHS = [3 + (7 * i) % 23 for i in range(70)]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = order(LENGTHS, 1, 2)
    torch.manual_seed(123)
    torch.rand(7)
    assert order(LENGTHS, 1, 2) == first
    assert order(LENGTHS, 1, 3) != first
    assert order(LENGTHS, 2, 2) != first
    sampler = BucketSampler(LENGTHS, 4, 1)
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        found = list(sampler)
    assert found == first


@pytest.mark.parametrize("count", [1, 3, 4, 33, 70])
def test_every_example_once_and_the_short_batch_last(count: int) -> None:
    found = order(LENGTHS[:count], 0, 0)
    assert sorted(found) == list(range(count))


def test_batches_hold_similar_lengths() -> None:
    def spread(rows: list[int]) -> float:
        batches = [rows[i : i + 4] for i in range(0, len(rows), 4)]
        spreads = [max(LENGTHS[i] for i in b) - min(LENGTHS[i] for i in b) for b in batches]
        return sum(spreads) / len(spreads)

    assert spread(order(LENGTHS, 0, 0)) < 0.5 * spread(list(range(70)))


def examples() -> list[TrainExample]:
    kinds = ["gender"] * 40 + ["age"] * 20 + [None] * 100 + ["rare"]
    return [
        TrainExample(
            id=f"e{i}", row=i, text="x", is_bias=None if kind is None else 1, bias_type=kind
        )
        for i, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("fraction", [0.05, 0.5, 1.0])
def test_strata_keep_their_shares(fraction: float) -> None:
    chosen = stratified_sample(examples(), fraction, seed=0)
    assert chosen == sorted(set(chosen))
    kinds = [examples()[i].bias_type for i in chosen]
    counts = [kinds.count(kind) for kind in ("gender", "age", None, "rare")]
    assert counts == [round(40 * fraction), round(20 * fraction), round(100 * fraction), 1]


def test_the_sample_follows_its_seed() -> None:
    assert stratified_sample(examples(), 0.3, seed=1) == stratified_sample(examples(), 0.3, seed=1)
    assert stratified_sample(examples(), 0.3, seed=1) != stratified_sample(examples(), 0.3, seed=2)
