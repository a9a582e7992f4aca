"""Directions of the probe set: sums of unit gradients, per bias type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from biasdiff.attribution.gradients import backward_example_losses, per_example_gradients
from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.errors import NonFiniteError
from biasdiff.models.lora import lora_parameters
from biasdiff.progress import task

MAX_HELD_BYTES = 2**28


@dataclass(frozen=True)
class ProbeDirection:
    """What train directions are compared with.

    Attributes:
        sums: By parameter name, [d, k]: the sum of the unit probe vectors of each bias type.
        bias_types: The k names.
        counts: Number of probes behind each column, [k].
    """

    sums: dict[str, Tensor]
    bias_types: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class EncodedProbes:
    """Probe pairs as token ids; ``less`` is empty where no estimator needs twins."""

    more: Sequence[Encoding]
    less: Sequence[Encoding]
    bias_types: Sequence[str]
    names: Sequence[str]


def probe_directions(
    model: Any, probes: EncodedProbes, *, kinds: set[str], max_tokens: int
) -> dict[str, ProbeDirection]:
    """Sum the unit probe vectors of every bias type, in one pass over the probe set.

    ``plain``: ∇ℓ(stereotype) / ‖∇ℓ(stereotype)‖, as in LESS. ``contrast``: with
    d = ∇ℓ(stereotype) - ∇ℓ(twin), d / ‖d‖. The gradients of one batch are held at a time, since a
    vector's length is known only after its last module; batches are cut so that they stay below
    ``MAX_HELD_BYTES``.

    Args:
        model: PEFT model.
        probes: The reference draw.
        kinds: Some of ``plain`` and ``contrast``.
        max_tokens: Token budget of a batch.

    Raises:
        NonFiniteError: If a probe's gradient is NaN or infinite; its name is given.
    """
    shapes = {name: p.numel() for name, p in lora_parameters(model)}
    device, dtype = next(model.parameters()).device, torch.float32
    types = tuple(sorted(set(probes.bias_types)))
    column = {name: k for k, name in enumerate(types)}
    counts = tuple(list(probes.bias_types).count(name) for name in types)
    sums = {
        kind: {n: torch.zeros(d, len(types), device=device, dtype=dtype) for n, d in shapes.items()}
        for kind in kinds
    }
    twins = "contrast" in kinds
    sides = 2 if twins else 1
    lengths = [
        sides * max(len(m), len(w) if twins else 0)
        for m, w in zip(probes.more, probes.less or probes.more, strict=True)
    ]
    held = max(1, MAX_HELD_BYTES // (4 * sides * sum(shapes.values())))
    batches = token_budget_batches(lengths, max_tokens=max_tokens, max_examples=held)
    with task("probe gradients", len(lengths)) as progress:
        for members in batches:
            encodings = [probes.more[i] for i in members]
            encodings += [probes.less[i] for i in members] if twins else []
            gradients: dict[str, Tensor] = {}
            with per_example_gradients(model, gradients.__setitem__):
                backward_example_losses(model, make_batch(encodings, device=device))
            n = len(members)
            memberships = torch.zeros(n, len(types), device=device, dtype=dtype)
            for row, index in enumerate(members):
                memberships[row, column[probes.bias_types[index]]] = 1
            names = [probes.names[i] for i in members]
            if "plain" in kinds:
                plain = {name: g[:n] for name, g in gradients.items()}
                _add_unit_vectors(sums["plain"], plain, memberships, names)
            if twins:
                differences = {name: g[:n] - g[n:] for name, g in gradients.items()}
                _add_unit_vectors(sums["contrast"], differences, memberships, names)
            progress.advance(n)
    return {kind: ProbeDirection(sums[kind], types, counts) for kind in sorted(kinds)}


def _add_unit_vectors(
    sums: dict[str, Tensor], vectors: dict[str, Tensor], memberships: Tensor, names: Sequence[str]
) -> None:
    squares = sum(v.float().square().sum(1) for v in vectors.values())
    assert isinstance(squares, Tensor)  # at least one LoRA parameter exists
    broken = [name for name, x in zip(names, squares.tolist(), strict=True) if x - x != 0]
    if broken:
        raise NonFiniteError(
            f"the gradient of {len(broken)} probe sentences is not finite: {', '.join(broken[:8])}",
            expected="finite gradients",
            remedy="check the adapter for NaN, or use float32",
        )
    weights = memberships * torch.where(squares > 0, squares.rsqrt(), 0.0)[:, None]
    for name, vector in vectors.items():
        sums[name].addmm_(vector.float().T, weights)
