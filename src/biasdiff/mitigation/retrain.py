"""Retraining: a fresh adapter on the base model, without the selected examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biasdiff.data.encoding import Encoding
from biasdiff.errors import DataError
from biasdiff.models.lora import LoraSettings, add_adapter
from biasdiff.training.fine_tuning import TrainingSettings
from biasdiff.training.warmup import warm_up


def retrain(
    base: Any,
    retain: Sequence[Encoding],
    names: Sequence[str],
    lora: LoraSettings,
    training: TrainingSettings,
    folder: Path,
) -> tuple[Any, list[dict[str, float]]]:
    """Train a fresh adapter on the examples that were not selected.

    Settings and seed are those of the warm-up, so that the examples are the only difference to the
    biased model.

    Args:
        base: Base model without an adapter.
        retain: The examples that were not selected.
        names: Their ids, for error messages.
        lora: Shape of the adapter.
        training: How to train.
        folder: Holds what an interrupted run resumes from.

    Returns:
        The adapted model, and loss and gradient norm after each epoch.

    Raises:
        DataError: If nothing is left to train on.
    """
    if not retain:
        raise DataError(
            "every train example is selected",
            expected="at least one example to retrain on",
            remedy="select a smaller fraction",
        )
    model = add_adapter(base, lora, seed=training.seed)
    log = warm_up(model, retain, names, training, folder, description="retraining")
    return model, log
