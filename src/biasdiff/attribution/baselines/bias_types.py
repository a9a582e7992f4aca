"""Which probes belong to which bias type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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

    def scores(self, sums: Floats, aggregate: Aggregate) -> Scores:
        """Return scores from their sums over the probes of each type, [n, k]."""
        counts = self.members.sum(0).astype(int).tolist()
        return typed_scores(sums, counts, self.names, aggregate=aggregate)


def membership(bias_types: Sequence[str]) -> Membership:
    """Return who belongs where, given the bias type of each probe."""
    names = tuple(sorted(set(bias_types)))
    members = np.array([[own == name for name in names] for own in bias_types], dtype=np.float64)
    return Membership(names, members)
