"""Directions of the probe set: sums of its gradients, per bias type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biasdiff.attribution.bias_types import membership
from biasdiff.attribution.gradients import batch_gradients
from biasdiff.attribution.material import EncodedProbes
from biasdiff.attribution.parameters import ChosenParameters, lora_maps
from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.errors import NonFiniteError
from biasdiff.progress import task
from biasdiff.training import processes

MAX_HELD_BYTES = 2**28


class Kind(NamedTuple):
    """Which vector of a probe pair is summed.

    Attributes:
        name: ``plain``: ∇ℓ(stereotype), as in LESS; ``contrast``: ∇ℓ(stereotype) - ∇ℓ(twin).
        unit: Whether it is brought to unit length first.
    """

    name: str
    unit: bool = True


PLAIN, CONTRAST = Kind("plain"), Kind("contrast")


@dataclass(frozen=True)
class ProbeDirection:
    """What train directions are compared with.

    Attributes:
        sums: By parameter name, [d, k]: the sum of the probe vectors of each bias type.
        bias_types: The k names.
        counts: Number of probes behind each column, [k].
    """

    sums: dict[str, Tensor]
    bias_types: tuple[str, ...]
    counts: tuple[int, ...]


def probe_directions(
    model: Any,
    probes: EncodedProbes,
    *,
    kinds: Iterable[Kind],
    max_tokens: int,
    parameters: ChosenParameters | None = None,
    average: bool = True,
) -> dict[Kind, ProbeDirection]:
    """Sum the probe vectors of every bias type, in one pass over the probe set.

    The gradients of one batch are held at a time, since a vector's length is known only after its
    last module; batches are cut so that they stay below ``MAX_HELD_BYTES``. Several processes share
    the batches.

    Args:
        model: PEFT model.
        probes: The reference draw.
        kinds: Which vectors.
        max_tokens: Token budget of a batch.
        parameters: What gradients are taken in; the adapter's by default.
        average: Whether a loss is the mean over target tokens, or their sum.

    Raises:
        NonFiniteError: If a probe's gradient is NaN or infinite; its name is given.
    """
    kinds = sorted(set(kinds))
    chosen = lora_maps(model) if parameters is None else parameters
    device = next(model.parameters()).device
    types = membership(probes.bias_types)
    sums = {
        kind: {n: torch.zeros(d, len(types.names), device=device) for n, d in chosen.sizes.items()}
        for kind in kinds
    }
    twins = any(kind.name == "contrast" for kind in kinds)
    batches = processes.share(probe_batches(probes, chosen, twins=twins, max_tokens=max_tokens))
    with task("probe gradients", sum(map(len, batches))) as progress:
        for members in batches:
            more, less = pair_gradients(
                model, probes, members, chosen, twins=twins, average=average
            )
            memberships = types.rows(members, device)
            names = [probes.names[i] for i in members]
            for kind in kinds:
                vectors = more
                if kind.name == "contrast":
                    vectors = {name: g - less[name] for name, g in more.items()}
                lengths = vector_lengths(vectors, names)
                weights = memberships
                if kind.unit:
                    weights = memberships * torch.where(lengths > 0, 1 / lengths, 0.0)[:, None]
                for name, vector in vectors.items():
                    sums[kind][name].addmm_(vector.float().T, weights)
            progress.advance(len(members))
    for kind in kinds:
        for tensor in sums[kind].values():
            processes.add_up(tensor)
    return {kind: ProbeDirection(sums[kind], types.names, types.counts) for kind in kinds}


def probe_batches(
    probes: EncodedProbes, chosen: ChosenParameters, *, twins: bool, max_tokens: int
) -> list[list[int]]:
    """Return batches of probe pairs whose gradients may be held together."""
    sides = 2 if twins else 1
    lengths = [
        sides * max(len(more), len(less) if twins else 0)
        for more, less in zip(probes.more, probes.less or probes.more, strict=True)
    ]
    held = max(1, MAX_HELD_BYTES // (4 * sides * sum(chosen.sizes.values())))
    return token_budget_batches(lengths, max_tokens=max_tokens, max_examples=held)


def pair_gradients(
    model: Any,
    probes: EncodedProbes,
    members: Sequence[int],
    chosen: ChosenParameters,
    *,
    twins: bool,
    average: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the gradients [n, d] of some stereotype sentences and of their twins, by parameter.

    The second is empty without twins.
    """
    device = next(model.parameters()).device
    encodings = [probes.more[i] for i in members]
    encodings += [probes.less[i] for i in members] if twins else []
    found: dict[str, Tensor] = {}
    batch = make_batch(encodings, device=device)
    batch_gradients(model, batch, found.__setitem__, parameters=chosen, average=average)
    n = len(members)
    more = {name: gradients[:n] for name, gradients in found.items()}
    return more, {name: gradients[n:] for name, gradients in found.items() if twins}


def vector_lengths(vectors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Return the length of each row over all parameters, [n].

    Raises:
        NonFiniteError: If one is NaN or infinite; the probes are named.
    """
    squares = torch.stack([v.float().square().sum(1) for v in vectors.values()]).sum(0)
    broken = [name for name, x in zip(names, squares.tolist(), strict=True) if x - x != 0]
    if broken:
        raise NonFiniteError(
            f"the gradient of {len(broken)} probe sentences is not finite: {', '.join(broken[:8])}",
            expected="finite gradients",
            remedy="check the adapter for NaN, or use float32",
        )
    return squares.sqrt()
