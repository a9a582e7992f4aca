"""The train examples that a curvature is taken of, their labels, and passes over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from biasdiff.attribution.finite import require_finite
from biasdiff.attribution.gradients import batch_gradients, frozen
from biasdiff.attribution.parameters import ChosenParameters
from biasdiff.data.batching import Batch, make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.errors import DataError
from biasdiff.functional.curvature import drawn_tokens
from biasdiff.functional.losses import IGNORED
from biasdiff.progress import task

FEWEST = 2
"""Train examples below which there is no curvature to speak of."""


@dataclass(frozen=True)
class CurvatureSample:
    """The train examples whose gradients make the curvature.

    Attributes:
        encodings: [n].
        names: Of each, for error messages.
        scales: What the gradient of each one's mean loss is multiplied with.
        max_tokens: Token budget of a batch.
    """

    encodings: Sequence[Encoding]
    names: Sequence[str]
    scales: Sequence[float]
    max_tokens: int


def draw_sample(
    encodings: Sequence[Encoding],
    names: Sequence[str] = (),
    *,
    size: int,
    max_tokens: int,
    seed: int,
) -> CurvatureSample:
    """Choose train examples at random, with the labels of the data.

    Raises:
        DataError: If there are fewer than two train examples.
    """
    if len(encodings) < FEWEST:
        raise DataError(
            f"{len(encodings)} train examples to take a curvature of",
            expected=f"at least {FEWEST}",
            remedy="take an estimator without curvature, or more train examples",
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = sorted(torch.randperm(len(encodings), generator=generator)[:size].tolist())
    return CurvatureSample(
        [encodings[i] for i in chosen],
        [names[i] if names else f"example {i}" for i in chosen],
        [1.0] * len(chosen),
        max_tokens,
    )


def with_drawn_labels(model: Any, sample: CurvatureSample, *, seed: int) -> CurvatureSample:
    """Return the sample with labels drawn from the model, each given the true tokens before it.

    They are drawn once, in a forward pass, so that every later pass sees the same gradients; they
    depend on the seed and the sample, not on batches or device.
    """
    generator = torch.Generator().manual_seed(seed)
    uniforms = [
        torch.rand(encoding.targets, generator=generator, dtype=torch.float64)
        for encoding in sample.encodings
    ]
    drawn = list(sample.encodings)
    for part in parts(model, sample, "curvature: labels"):
        inputs = {k: part.batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
        with frozen(model), torch.no_grad():
            logits = model(**inputs, use_cache=False).logits
        for row, index in enumerate(part.members):
            places = part.batch["labels"][row, 1:].ne(IGNORED).nonzero().squeeze(1)
            tokens = drawn_tokens(logits[row, places], uniforms[index].to(logits.device))
            labels = torch.full((len(drawn[index]),), IGNORED)
            labels[places.cpu() + 1] = tokens.cpu()
            drawn[index] = Encoding(drawn[index].input_ids, labels.tolist())
    return replace(sample, encodings=drawn, scales=[e.targets**0.5 for e in drawn])


@dataclass(frozen=True)
class Part:
    """A batch of the sample, its scales [n, 1], and what must turn out finite, [n] each."""

    members: list[int]
    batch: Batch
    scales: Tensor
    checked: list[Tensor] = field(default_factory=list)


def parts(
    model: Any, sample: CurvatureSample, description: str, *, most: int | None = None
) -> Iterator[Part]:
    """Yield the sample in batches, and check after each what its ``checked`` has been given.

    Raises:
        NonFiniteError: If something there is NaN or infinite; the examples are named.
    """
    device = next(model.parameters()).device
    lengths = [len(encoding) for encoding in sample.encodings]
    batches = token_budget_batches(lengths, max_tokens=sample.max_tokens, max_examples=most)
    with task(description, len(lengths)) as progress:
        for members in batches:
            batch = make_batch([sample.encodings[i] for i in members], device=device)
            scales = torch.tensor([[sample.scales[i]] for i in members], dtype=torch.float64)
            part = Part(members, batch, scales.to(device))
            yield part
            require_finite(part.checked, [sample.names[i] for i in members])
            progress.advance(len(members))


def pass_over_gradients(
    model: Any,
    sample: CurvatureSample,
    chosen: ChosenParameters,
    consume: Callable[[str, Tensor], None],
    description: str,
) -> None:
    """Hand the scaled gradients [n, d] of every parameter to ``consume``, batch by batch."""
    for part in parts(model, sample, description, most=1 if chosen.others else None):

        def check_and_consume(name: str, gradients: Tensor, part: Part = part) -> None:
            scaled = gradients * part.scales.to(gradients.dtype)
            part.checked.append(scaled.float().square().sum(1))
            consume(name, scaled)

        losses = batch_gradients(model, part.batch, check_and_consume, parameters=chosen)
        part.checked.append(losses)
