"""The record that every metric returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["higher_is_better", "lower_is_better", "target: 50", "target: 0", "none"]


@dataclass(frozen=True)
class Metric:
    """One figure with its uncertainty.

    Attributes:
        value: The figure; NaN where it cannot be computed, never 0.
        n: Number of examples behind it.
        direction: How to read it; ``none`` for descriptive figures.
        standard_error: Standard error in the units of ``value``, NaN where unknown.
        interval: 95 % interval (low, high), or None.
        p_value: Of the hypothesis that the figure (a difference) is zero, or None.
        p_adjusted: The same after Holm's correction over the bias types, or None.
    """

    value: float
    n: int
    direction: Direction
    standard_error: float = math.nan
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    p_adjusted: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict in which NaN has become null."""
        record: dict[str, Any] = {
            "value": finite_or_none(self.value),
            "standard_error": finite_or_none(self.standard_error),
            "n": self.n,
            "direction": self.direction,
        }
        if self.interval is not None:
            record["interval_95"] = [finite_or_none(x) for x in self.interval]
        for name in ("p_value", "p_adjusted"):
            value = getattr(self, name)
            if value is not None:
                record[name] = finite_or_none(value)
        return record


def finite_or_none(value: float) -> float | None:
    """Return ``value`` rounded to 10 significant digits, or None where it is not finite."""
    return float(f"{value:.10g}") if math.isfinite(value) else None
