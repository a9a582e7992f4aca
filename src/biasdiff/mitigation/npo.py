"""Negative preference optimisation: unlearn the selected examples, keep the others."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biasdiff.data.batching import Batch, make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.errors import DataError
from biasdiff.functional.losses import npo_loss, target_counts, token_log_probs
from biasdiff.training.fine_tuning import RESUME_FOLDER, TrainingItems, TrainingSettings, fine_tune
from biasdiff.training.token_scores import log_likelihoods


@dataclass(frozen=True)
class NpoSettings:
    """How strongly to forget and to keep.

    Attributes:
        beta: Inverse temperature of the forget loss; towards 0 it becomes gradient ascent.
        retain_weight: Factor of the retain term, the mean loss over retain tokens; 0 for none.
    """

    beta: float = 0.1
    retain_weight: float = 1.0


def unlearn(
    model: Any,
    forget: Sequence[Encoding],
    retain: Sequence[Encoding],
    forget_names: Sequence[str],
    training: TrainingSettings,
    settings: NpoSettings,
    folder: Path,
    *,
    max_tokens: int,
) -> list[dict[str, float]]:
    """Train the biased model's adapter away from the forget set, in place.

    L = NPO(forget) + w · NLL(retain), one retain example drawn beside each forget example. The
    reference is the biased model itself; its log-probabilities of the forget set are constants, so
    they are computed once here and no second model is held.

    Args:
        model: The biased model: base plus warm-up adapter, trainable.
        forget: The selected examples.
        retain: The others.
        forget_names: Ids of the forget set, for error messages.
        training: How to train.
        settings: Of the loss.
        folder: Holds what an interrupted run resumes from.
        max_tokens: Token budget for the reference pass.

    Raises:
        DataError: If the forget set is empty, or the retain set is while its weight is not 0.
    """
    if not forget or (not retain and settings.retain_weight > 0):
        raise DataError(
            f"the forget set has {len(forget)} examples and the retain set {len(retain)}",
            expected="at least one of each",
            remedy="select a fraction between 0 and 1, or set the retain weight to 0",
        )
    # Before training goes on: a resumed run must not take it from the half-trained adapter.
    reference = torch.from_numpy(
        log_likelihoods(model, forget, max_tokens=max_tokens, description="reference")
    ).float()
    partners = _partners(
        len(forget), len(retain) if settings.retain_weight > 0 else 0, training.seed
    )

    def collate(indices: Sequence[int]) -> Batch:
        encodings = [forget[i] for i in indices] + [
            retain[partners[i]] for i in indices if partners
        ]
        batch = make_batch(encodings)
        return batch | {"index": torch.tensor(indices), "reference": reference[list(indices)]}

    items = TrainingItems([len(e) for e in forget], forget_names, collate)
    loss = forget_and_retain_loss(settings)
    return fine_tune(
        model, items, loss, training, folder / RESUME_FOLDER, description="unlearning (NPO)"
    )


def forget_and_retain_loss(
    settings: NpoSettings,
) -> Callable[[Any, Batch, Tensor | int | None], Tensor]:
    """Return the loss of a batch whose first rows are to forget and whose others to retain."""

    def loss(model: Any, batch: Batch, _: Tensor | int | None) -> Tensor:
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
        log_probs = token_log_probs(model(**inputs, use_cache=False).logits, batch["labels"])
        n = len(batch["reference"])
        total = npo_loss(log_probs[:n].sum(1), batch["reference"], beta=settings.beta)
        if settings.retain_weight > 0:
            targets = target_counts(batch["labels"][n:]).sum()
            total = total - settings.retain_weight * log_probs[n:].sum() / targets
        return total

    return loss


def _partners(forget: int, retain: int, seed: int) -> list[int]:
    """Return a retain row for each forget row, none used twice before all have been used."""
    if retain == 0:
        return []
    draw = random.Random(seed)
    rows: list[int] = []
    while len(rows) < forget:
        rows += draw.sample(range(retain), retain)
    return rows[:forget]
