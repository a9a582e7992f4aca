"""Which tokens of a train example its influence score comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from biasdiff.attribution.gradients import batch_gradients
from biasdiff.attribution.parameters import ChosenParameters
from biasdiff.attribution.scoring import Comparison
from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.functional.losses import IGNORED


@dataclass(frozen=True)
class Explanation:
    """A score taken apart.

    Attributes:
        score: What the parts add up to.
        tokens: Target token ids.
        contributions: Of each target token's loss.
        momentum: Of the first moment, which every example shares; 0 for train sides without it.
    """

    score: float
    tokens: list[int]
    contributions: list[float]
    momentum: float


def explain_example(
    model: Any,
    encoding: Encoding,
    comparison: Comparison,
    parameters: ChosenParameters,
    *,
    max_tokens: int,
    average: bool = True,
) -> Explanation:
    """Split the score of one example into the contributions of its target tokens.

    The gradient is the sum of those of its tokens' losses, g = Σ_t g_t, and with the denominator of
    Γ held at its value for the whole example, Γ is linear in g: Γ(g) = Γ₀ + D g. So token t
    contributes ⟨D g_t, u⟩ / ‖Γ‖ and the first moment ⟨Γ₀, u⟩ / ‖Γ‖, u the mean probe direction. The
    gradients g_t come from batches that hold the example once for every target.

    Args:
        model: PEFT model at the checkpoint.
        encoding: The example.
        comparison: Train side and probe direction.
        parameters: What influence is measured in.
        max_tokens: Token budget of a batch.
        average: Whether the loss is the mean over target tokens, or their sum.
    """
    device = next(model.parameters()).device
    mean = {n: s.sum(1) / sum(comparison.probe.counts) for n, s in comparison.probe.sums.items()}
    slopes: dict[str, Tensor] = {}
    parts = {"squares": 0.0, "momentum": 0.0, "score": 0.0}

    def take_apart(name: str, gradients: Tensor) -> None:
        whole = comparison.train_side(name, gradients).float()[0]
        slope, offset = comparison.train_side.linear_part(name, gradients)
        slopes[name] = slope.float()[0] * mean[name]
        parts["squares"] += float(whole.double().square().sum())
        parts["score"] += float(whole.double() @ mean[name].double())
        parts["momentum"] += float(offset.double()[0] @ mean[name].double())

    batch = make_batch([encoding], device=device)
    batch_gradients(model, batch, take_apart, parameters=parameters, average=average)
    length = 1.0 if comparison.normalize == "none" else parts["squares"] ** 0.5
    places = [t for t, label in enumerate(encoding.labels) if t and label != IGNORED]
    found = torch.zeros(len(places), dtype=torch.float64)
    share = 1 / len(places) if average else 1.0
    size = 1 if parameters.others else max(1, max_tokens // len(encoding))
    for start in range(0, len(places), size):
        chosen = places[start : start + size]
        rows = [_only(encoding, place) for place in chosen]
        part = found[start : start + size]

        def add(name: str, gradients: Tensor, part: Tensor = part) -> None:
            part.add_((gradients.double() @ slopes[name].double()).cpu(), alpha=share)

        batch_gradients(model, make_batch(rows, device=device), add, parameters=parameters)
    scale = 0.0 if length == 0 else 1 / length
    return Explanation(
        parts["score"] * scale,
        [encoding.labels[place] for place in places],
        (found * scale).tolist(),
        parts["momentum"] * scale,
    )


def _only(encoding: Encoding, place: int) -> Encoding:
    labels = [IGNORED] * len(encoding)
    labels[place] = encoding.labels[place]
    return Encoding(encoding.input_ids, labels)
