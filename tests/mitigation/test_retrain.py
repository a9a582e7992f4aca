from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from biasdiff.data.encoding import Encoding
from biasdiff.errors import DataError
from biasdiff.mitigation.retrain import retrain
from biasdiff.models.lora import LoraSettings, add_adapter, lora_parameters
from biasdiff.training.fine_tuning import TrainingSettings
from biasdiff.training.warmup import warm_up

Loader = Callable[..., tuple[Any, Any]]
LORA = LoraSettings(rank=2, alpha=4, dropout=0.1)
TRAINING = TrainingSettings(epochs=2, batch_size=4, learning_rate=1e-3, seed=3)


def test_retraining_on_everything_is_the_warm_up(
    tiny: Loader, encodings: list[Encoding], tmp_path: Path
) -> None:
    names = [str(i) for i in range(len(encodings))]
    biased = add_adapter(tiny("llama")[0], LORA, seed=TRAINING.seed)
    warm_up(biased, encodings, names, TRAINING, tmp_path / "a")
    base, _ = tiny("llama")
    again, log = retrain(base, encodings, names, LORA, TRAINING, tmp_path / "b")
    assert len(log) == 2
    for (name, a), (_, b) in zip(lora_parameters(biased), lora_parameters(again), strict=True):
        assert torch.equal(a, b), name


def test_leaving_examples_out_changes_the_adapter(
    tiny: Loader, encodings: list[Encoding], tmp_path: Path
) -> None:
    found = []
    for count in (10, 6):
        model, _ = retrain(
            tiny("llama")[0],
            encodings[:count],
            [str(i) for i in range(count)],
            LORA,
            TRAINING,
            tmp_path / str(count),
        )
        found.append(dict(lora_parameters(model)))
    assert not any(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_nothing_left_to_train_on(tiny: Loader, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every train example is selected; expected at least one"):
        retrain(tiny("llama")[0], [], [], LORA, TRAINING, tmp_path)
