"""Fine-tuning of an adapter through ``transformers.Trainer``, resumable at every epoch."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from biasdiff.data.batching import Batch
from biasdiff.errors import NonFiniteError
from biasdiff.progress import Task, task
from biasdiff.training import processes

BatchLoss = Callable[[Any, Batch, "Tensor | int | None"], Tensor]
"""``(model, batch, target tokens of the whole accumulated batch) -> scalar loss``."""

RESUME_FOLDER = "trainer"
BUCKET_BATCHES = 8


@dataclass(frozen=True)
class TrainingSettings:
    """How an adapter is trained.

    Attributes:
        epochs: Passes over the data.
        batch_size: Examples in a forward pass.
        accumulation: Forward passes in an optimizer step.
        learning_rate: Peak rate.
        schedule: Name of a transformers scheduler.
        warmup_ratio: Share of all steps in which the rate rises.
        weight_decay: AdamW's.
        max_grad_norm: Gradients are clipped to this length; 0 for no clipping.
        loss_average: ``token`` averages over all target tokens of a batch, as transformers does;
            ``example`` over each example's tokens first, as attribution does.
        seed: Of the order of examples and of dropout.
    """

    epochs: int = 4
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 2e-4
    schedule: str = "linear"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    loss_average: str = "token"
    seed: int = 0


@dataclass(frozen=True)
class TrainingItems:
    """What is trained on: items by number, their lengths, and how a batch of them is made."""

    lengths: Sequence[int]
    names: Sequence[str]
    collate: Callable[[Sequence[int]], Batch]


def fine_tune(
    model: Any,
    items: TrainingItems,
    loss: BatchLoss,
    settings: TrainingSettings,
    work: Path,
    *,
    description: str,
    loss_covers_accumulation: bool = False,
    on_epoch: Callable[[int, int, float, torch.optim.Optimizer], None] | None = None,
) -> list[dict[str, float]]:
    """Train the model's adapter in place and return the loss log.

    An interrupted run continues after its last whole epoch, with the optimizer, the schedule and
    the random state as they were, and ends with the same weights as an undisturbed one. Several
    processes share each batch; a last batch that they cannot share evenly is filled up with
    examples from the beginning.

    Args:
        model: PEFT model with a trainable adapter.
        items: What to train on.
        loss: Of one batch.
        settings: How.
        work: Folder for the files to resume from; removed at the end.
        description: For the progress bar.
        loss_covers_accumulation: Whether ``loss`` already averages over the accumulated batch.
        on_epoch: Called after each epoch with (epochs, steps, mean learning rate, optimizer).

    Raises:
        NonFiniteError: If a loss is NaN or infinite; the examples of the batch are named.
    """
    logging.getLogger("transformers.trainer").setLevel(logging.WARNING)
    resume_from = _last_whole_checkpoint(work)
    steps_an_epoch = -(-len(items.lengths) // (settings.batch_size * settings.accumulation))
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup_ratio * steps_an_epoch * settings.epochs),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        optim="adamw_torch",
        save_strategy="epoch",
        save_total_limit=2,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=next(model.parameters()).device.type == "cpu",
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        # Each of several processes takes its part of a batch, so that steps are those of one.
        accelerator_config={"split_batches": processes.count() > 1},
    )
    with task(description, steps_an_epoch * settings.epochs) as progress:
        trainer = _AdapterTrainer(
            model=model,
            args=arguments,
            data_collator=items.collate,
            train_dataset=_Numbers(len(items.lengths)),
            callbacks=[_Bookkeeping(progress, steps_an_epoch, on_epoch)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.set_up(items, loss, loss_covers_accumulation)
        trainer.train(resume_from_checkpoint=resume_from)
    log = [
        {"epoch": entry["epoch"], "loss": entry["loss"], "grad_norm": entry.get("grad_norm", 0.0)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    processes.first_only(lambda: shutil.rmtree(work, ignore_errors=True))
    model.eval()
    return log


class _Numbers(torch.utils.data.Dataset[int]):
    """The numbers below n; the collator turns numbers into a batch."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


class BucketSampler(Sampler[int]):
    """Shuffle by (seed, epoch), with similar lengths in a batch.

    Every epoch draws a fresh order, cuts it into buckets of some batches, sorts each bucket by
    length and shuffles the batches. The order depends on seed and epoch alone, so a resumed run
    sees what an undisturbed one sees.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        size, bucket = self._batch_size, self._batch_size * BUCKET_BATCHES
        batches = []
        for start in range(0, len(order), bucket):
            part = sorted(order[start : start + bucket], key=lambda i: self._lengths[i])
            batches += [part[i : i + size] for i in range(0, len(part), size)]
        whole = [b for b in batches if len(b) == size]
        rest = [b for b in batches if len(b) < size]
        for index in torch.randperm(len(whole), generator=generator).tolist():
            yield from whole[index]
        for batch in rest:
            yield from batch


class _AdapterTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose loss is handed in and whose order depends on seed and epoch alone."""

    def set_up(self, items: TrainingItems, loss: BatchLoss, covers_accumulation: bool) -> None:
        self._items, self._loss = items, loss
        self.loss_is_scaled_for_ga = covers_accumulation
        self.model_accepts_loss_kwargs = True  # so that the target tokens are counted

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return BucketSampler(self._items.lengths, size, self.args.seed)

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        loss = self._loss(model, inputs, num_items_in_batch)
        if self.loss_is_scaled_for_ga:  # its denominator counts the targets of all processes
            loss = loss * processes.count()
        if not torch.isfinite(loss):
            names = [self._items.names[i] for i in inputs["index"].tolist()]
            shown = ", ".join(names[:16]) + (" ..." if len(names) > 16 else "")
            raise NonFiniteError(
                f"the training loss became {loss.item()} at step {self.state.global_step + 1}, "
                f"in the batch of {shown}",
                expected="a finite loss",
                remedy="lower the learning rate or check these examples",
            )
        return loss


class _Bookkeeping(TrainerCallback):  # type: ignore[misc]
    """Counts steps for the progress bar and hands each finished epoch on."""

    def __init__(
        self,
        progress: Task,
        steps_an_epoch: int,
        on_epoch: Callable[[int, int, float, torch.optim.Optimizer], None] | None,
    ) -> None:
        self._progress, self._steps, self._on_epoch = progress, steps_an_epoch, on_epoch
        self._rates: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.skip(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._rates.append(float(kwargs["lr_scheduler"].get_last_lr()[0]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.advance()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._on_epoch is not None:
            optimizer = kwargs["optimizer"]
            optimizer = getattr(optimizer, "optimizer", optimizer)
            rate = sum(self._rates) / max(len(self._rates), 1)
            self._on_epoch(round(state.epoch), state.global_step, rate, optimizer)
        self._rates = []


def _last_whole_checkpoint(work: Path) -> str | None:
    """Return the newest Trainer checkpoint whose last-written file is complete; drop the others."""
    whole: list[tuple[int, Path]] = []
    for folder in work.glob("checkpoint-*"):
        try:
            step = int(json.loads((folder / "trainer_state.json").read_text())["global_step"])
            whole.append((step, folder))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder, ignore_errors=True)
    return str(max(whole)[1]) if whole else None
