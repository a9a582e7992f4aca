"""Training of two adapters on the two sides of probe pairs, in step with each other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from biasdiff.attribution.material import EncodedProbes
from biasdiff.attribution.pair_classifier import paired_accuracy
from biasdiff.attribution.paired_adapters import SIDES, STEREOTYPE, TWIN, PairedAdapters
from biasdiff.attribution.scores import Floats
from biasdiff.attribution.split_forward import SplitForward
from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.data.probe import ProbePair
from biasdiff.data.stratification import grouped
from biasdiff.errors import DataError, NonFiniteError
from biasdiff.progress import Task, say, task
from biasdiff.training.warmup import token_mean_loss

AUTO = "auto"
MOST_EPOCHS = 10
PATIENCE = 2
"""Epochs without a better accuracy after which the search for the best one ends."""
HELD_OUT = 0.2
"""Share of the stereotypes that the search for the best epoch is judged on."""
FEWEST_PAIRS = 2
FEWEST_STEREOTYPES = 5


@dataclass(frozen=True)
class PairTraining:
    """How both adapters are trained.

    Attributes:
        epochs: Passes over the pairs; ``auto`` for the number that does best on held-out ones.
        learning_rate: AdamW's, constant; no weight decay, no clipping, no dropout.
        batch_size: Pairs in a step.
    """

    epochs: int | Literal["auto"] = 3
    learning_rate: float = 1e-3
    batch_size: int = 16


def train_on_sides(
    model: Any,
    adapters: PairedAdapters,
    probes: EncodedProbes,
    stereotypes: Sequence[str],
    settings: PairTraining,
    *,
    seed: int,
    max_tokens: int,
) -> None:
    """Train one adapter on the stereotype sentences, the other on their twins.

    Both see the same pairs in the same order, and the loss is the mean over a batch's tokens, so
    that what the two have learned differs by the words in which the sides differ. With ``auto``
    a share of the stereotypes is held out, and the adapters become those of the epoch in which
    the difference of their mean log-likelihoods best tells held-out stereotype sentences from their
    own twins (`paired_accuracy`; the earliest of equals). They are not trained on the held-out
    pairs afterwards.

    Args:
        model: Base model, the adapters attached.
        adapters: Trained in place.
        probes: The pairs, with twins.
        stereotypes: Name of each pair's stereotype; none is both trained on and held out.
        settings: How.
        seed: Of the order and of what is held out.
        max_tokens: Token budget of a batch that is not trained on.

    Raises:
        DataError: If there are too few pairs, or too few stereotypes to hold some out.
        NonFiniteError: If a loss is NaN or infinite.
    """
    auto = settings.epochs == AUTO
    held = held_out_pairs(stereotypes, seed=seed) if auto else []
    members = [i for i in range(len(probes.more)) if i not in set(held)]
    if len(members) < FEWEST_PAIRS:
        raise DataError(
            f"the probe set has {len(members)} pairs to train adapters on",
            expected=f"at least {FEWEST_PAIRS}",
            remedy="add pairs or choose another estimator",
        )
    epochs = MOST_EPOCHS if settings.epochs == "auto" else settings.epochs
    shuffle = random.Random(seed)
    optimizers = {
        side: torch.optim.AdamW(
            adapters.sides[side].parameters(), lr=settings.learning_rate, weight_decay=0.0
        )
        for side in SIDES
    }
    forward = SplitForward(model, adapters.switch, SIDES, shared=adapters.first_layer)
    found: list[float] = []
    best: dict[str, torch.Tensor] = {}
    with task("contrast adapters", epochs * -(-len(members) // settings.batch_size)) as progress:
        for epoch in range(1, epochs + 1):
            shuffle.shuffle(members)
            for start in range(0, len(members), settings.batch_size):
                batch = members[start : start + settings.batch_size]
                _step(model, adapters, optimizers, probes, batch, epoch, progress)
            if not auto:
                continue
            found.append(_held_out_accuracy(forward, probes, held, max_tokens=max_tokens))
            if found[-1] > max(found[:-1], default=-1.0):
                best = {name: value.clone() for name, value in adapters.state_dict().items()}
            elif epoch - (found.index(max(found)) + 1) >= PATIENCE:
                break
    if auto:
        adapters.load_state_dict(best)
        say(
            f"  trained for {found.index(max(found)) + 1} epochs: tells {max(found):.0%} of "
            f"{len(held)} held-out pairs apart (by epoch: {', '.join(f'{x:.0%}' for x in found)})"
        )


def stereotype_names(pairs: Sequence[ProbePair]) -> list[str]:
    """Return each pair's ``stereotype_id``; its row where there is none."""
    return [pair.stereotype_id or f"row {pair.row}" for pair in pairs]


def held_out_pairs(stereotypes: Sequence[str], *, seed: int) -> list[int]:
    """Return positions of the pairs of a random fifth of the stereotypes.

    Raises:
        DataError: If there are too few stereotypes.
    """
    groups = grouped(map(str, range(len(stereotypes))), lambda i: stereotypes[int(i)])
    if len(groups) < FEWEST_STEREOTYPES:
        raise DataError(
            f"the probe set has {len(groups)} stereotypes, too few to hold some out",
            expected=f"at least {FEWEST_STEREOTYPES}",
            remedy="give epochs as a number or add pairs",
        )
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    chosen = names[: max(1, round(HELD_OUT * len(names)))]
    return sorted(int(i) for name in chosen for i in groups[name])


def side_contrast(forward: SplitForward, encodings: Sequence[Encoding], device: Any) -> Floats:
    """Return the mean log-likelihood per target token under the stereotype adapter minus twin, [n].

    Args:
        forward: Over `SIDES`.
        encodings: One batch.
        device: Where the model is.
    """
    means = forward.mean_log_probs(make_batch(encodings, device=device))
    return np.asarray((means[STEREOTYPE] - means[TWIN]).cpu().numpy(), dtype=np.float64)


def _held_out_accuracy(
    forward: SplitForward, probes: EncodedProbes, held: Sequence[int], *, max_tokens: int
) -> float:
    device = next(forward.model.parameters()).device
    encodings = [side[i] for side in (probes.more, probes.less) for i in held]
    scores = np.empty(len(encodings))
    for members in token_budget_batches([len(e) for e in encodings], max_tokens=max_tokens):
        scores[members] = side_contrast(forward, [encodings[i] for i in members], device)
    return paired_accuracy(scores[: len(held)], scores[len(held) :])


def _step(
    model: Any,
    adapters: PairedAdapters,
    optimizers: dict[str, torch.optim.AdamW],
    probes: EncodedProbes,
    members: Sequence[int],
    epoch: int,
    progress: Task,
) -> None:
    device = next(model.parameters()).device
    for side, encodings in ((STEREOTYPE, probes.more), (TWIN, probes.less)):
        adapters.switch(side)
        batch = make_batch([encodings[i] for i in members], device=device)
        with torch.enable_grad():
            loss = token_mean_loss(model, batch, None)
            if not torch.isfinite(loss):
                names = ", ".join(probes.names[i] for i in members[:8])
                raise NonFiniteError(
                    f"the loss of the {side} adapter became {loss.item()} in epoch {epoch}, in the "
                    f"batch of {names}" + (" ..." if len(members) > 8 else ""),
                    expected="a finite loss",
                    remedy="lower learning_rate, check these pairs or use float32",
                )
            torch.autograd.backward(loss)
        optimizers[side].step()
        optimizers[side].zero_grad()
    progress.advance()
