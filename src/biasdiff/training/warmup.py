"""Warm-up: LoRA fine-tuning on the train set, a checkpoint after every epoch."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biasdiff.data.batching import Batch, make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.data.records import TrainExample
from biasdiff.functional.losses import example_losses, target_counts, token_log_probs
from biasdiff.training import processes
from biasdiff.training.checkpoints import CheckpointInfo, live_adam_state, save_checkpoint
from biasdiff.training.fine_tuning import (
    RESUME_FOLDER,
    BatchLoss,
    TrainingItems,
    TrainingSettings,
    fine_tune,
)

CHECKPOINTS = "checkpoints"


def token_mean_loss(model: Any, batch: Batch, targets: Tensor | int | None) -> Tensor:
    """Return the mean loss over all target tokens of the accumulated batch, as Trainer does."""
    total = -token_log_probs(_logits(model, batch), batch["labels"]).sum()
    return total / (target_counts(batch["labels"]).sum() if targets is None else targets)


def example_mean_loss(model: Any, batch: Batch, targets: Tensor | int | None) -> Tensor:
    """Return the mean over examples of each one's mean loss over its tokens."""
    return example_losses(_logits(model, batch), batch["labels"]).mean()


def _logits(model: Any, batch: Batch) -> Tensor:
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


LOSSES: dict[str, BatchLoss] = {"token": token_mean_loss, "example": example_mean_loss}


def text_items(encodings: Sequence[Encoding], names: Sequence[str]) -> TrainingItems:
    """Return training items that are the given encodings."""

    def collate(indices: Sequence[int]) -> Batch:
        batch = make_batch([encodings[i] for i in indices])
        return batch | {"index": torch.tensor(indices)}

    return TrainingItems([len(e) for e in encodings], names, collate)


def warm_up(
    model: Any,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    settings: TrainingSettings,
    folder: Path,
    *,
    description: str = "warm-up",
) -> list[dict[str, float]]:
    """Fine-tune the model's adapter on texts; write ``checkpoints/epoch-N`` under ``folder``.

    The Trainer averages a batch's loss over its tokens (``loss_average``) and clips the gradient
    (``max_grad_norm``); attribution averages over each example's tokens and does not clip. Both
    settings are recorded in every checkpoint.

    Args:
        model: PEFT model with a trainable adapter, changed in place.
        encodings: The examples.
        names: Their ids, for error messages.
        settings: How to train.
        folder: Where checkpoints go; also holds what an interrupted run resumes from.
        description: For the progress bar.

    Returns:
        Loss and gradient norm after each epoch.
    """

    def keep(epoch: int, step: int, rate: float, optimizer: torch.optim.Optimizer) -> None:
        if not processes.is_first():
            return
        adam = live_adam_state(model, optimizer)
        info = CheckpointInfo(
            epoch=epoch,
            step=step,
            betas=adam.betas,
            eps=adam.eps,
            mean_learning_rate=rate,
            loss_average=settings.loss_average,
            max_grad_norm=settings.max_grad_norm,
        )
        save_checkpoint(folder / CHECKPOINTS / f"epoch-{epoch}", model, adam, info)

    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    return fine_tune(
        model,
        text_items(encodings, names),
        LOSSES[settings.loss_average],
        settings,
        folder / RESUME_FOLDER,
        description=description,
        loss_covers_accumulation=settings.loss_average == "token",
        on_epoch=keep,
    )


def stratified_sample(examples: Sequence[TrainExample], fraction: float, *, seed: int) -> list[int]:
    """Return sorted row positions of a random fraction, equal within each bias type and class.

    At least one example of every stratum is kept. Used for the paper's partial setting (warm-up on
    5 % of the data).
    """
    strata: dict[tuple[str | None, int | None], list[int]] = defaultdict(list)
    for position, example in enumerate(examples):
        strata[example.bias_type, example.is_bias].append(position)
    draw = random.Random(seed)
    chosen: list[int] = []
    for key in sorted(strata, key=repr):
        members = strata[key]
        chosen += draw.sample(members, max(1, round(fraction * len(members))))
    return sorted(chosen)
