"""What a probe set holds, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from biasdiff.data.probe import ProbePair
from biasdiff.data.stratification import grouped


@dataclass(frozen=True)
class TypeCounts:
    """Counts of one bias type.

    Attributes:
        bias_type: The type.
        pairs: Number of pairs.
        stereotypes: Number of distinct ``stereotype_id``.
        antistereo: Share of antistereo pairs.
        words: Mean number of words of ``sent_more``.
    """

    bias_type: str
    pairs: int
    stereotypes: int
    antistereo: float
    words: float


def counts(pairs: Sequence[ProbePair]) -> list[TypeCounts]:
    """Return the counts of each type, and last those of ``all``."""
    by_type = sorted(grouped(pairs, lambda p: p.bias_type).items())
    return [_counts(name, members) for name, members in by_type] + [_counts("all", pairs)]


def _counts(name: str, pairs: Sequence[ProbePair]) -> TypeCounts:
    total = max(len(pairs), 1)
    return TypeCounts(
        bias_type=name,
        pairs=len(pairs),
        stereotypes=len({p.stereotype_id for p in pairs if p.stereotype_id}),
        antistereo=sum(p.stereo_antistereo == "antistereo" for p in pairs) / total,
        words=sum(len(p.sent_more.split()) for p in pairs) / total,
    )
