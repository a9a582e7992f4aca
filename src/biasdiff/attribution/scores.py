"""Influence scores, overall and by bias type; higher = pushes more towards the stereotypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Aggregate = Literal["mean", "max"]


@dataclass(frozen=True)
class Scores:
    """Influence scores of one estimator for a train set of n examples.

    Attributes:
        overall: [n].
        by_type: [n, k], towards the probes of each bias type; k is 0 for an estimator that knows
            none.
        bias_types: The k names.
        notes: What the estimator says of itself, for the record; JSON values.
    """

    overall: Floats
    by_type: Floats
    bias_types: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


def untyped_scores(overall: Floats) -> Scores:
    """Return scores of an estimator that knows no bias types."""
    return Scores(np.asarray(overall, dtype=np.float64), np.empty((len(overall), 0)))


def typed_scores(
    sums: Floats,
    counts: Sequence[int],
    bias_types: Sequence[str],
    *,
    aggregate: Aggregate = "mean",
) -> Scores:
    """Return scores from their sums over the probes of each bias type.

    Args:
        sums: [n, k].
        counts: Number of probes of each type, [k].
        bias_types: The k names.
        aggregate: ``mean``: over all probes, the paper's Eq. 6; ``max``: the highest of the types'
            means, as LESS does with its subtasks.
    """
    by_type = sums / np.asarray(counts, dtype=np.float64)
    overall = by_type.max(1) if aggregate == "max" else sums.sum(1) / float(sum(counts))
    return Scores(overall, by_type, tuple(bias_types))
