"""Which probes belong to which bias type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from biasdiff.attribution.scores import Aggregate, Floats, Scores, typed_scores


@dataclass(frozen=True)
class Membership:
    """The bias types of m probes.

    Attributes:
        names: The k bias types, sorted.
        members: [m, k], 1 where probe and type belong together, else 0.
    """

    names: tuple[str, ...]
    members: Floats

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of probes of each type, [k]."""
        return tuple(self.members.sum(0).astype(int).tolist())

    def rows(self, probes: Sequence[int], device: torch.device) -> Tensor:
        """Return the rows of some probes, [n, k] in float32."""
        return torch.from_numpy(self.members[list(probes)]).float().to(device)

    def scores(self, sums: Floats, aggregate: Aggregate) -> Scores:
        """Return scores from their sums over the probes of each type, [n, k]."""
        return typed_scores(sums, self.counts, self.names, aggregate=aggregate)


def membership(bias_types: Sequence[str]) -> Membership:
    """Return who belongs where, given the bias type of each probe."""
    names = tuple(sorted(set(bias_types)))
    members = np.array([[own == name for name in names] for own in bias_types], dtype=np.float64)
    return Membership(names, members)
