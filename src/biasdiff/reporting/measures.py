"""What each figure is called and how it is printed, in HTML and in the terminal alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MetricRecord = Mapping[str, Any]
"""One metric of results.json: what `biasdiff.results.Metric.to_json` writes."""

MISSING = "n/a"


@dataclass(frozen=True)
class Measure:
    """How one figure is shown.

    Attributes:
        label: Its name.
        unit: Unit of its value, empty where there is none.
        digits: Decimals.
        change_unit: Unit of a difference between two models.
        neutral: Value of a difference that means no change: 0, and 1 for a ratio.
    """

    label: str
    unit: str = ""
    digits: int = 1
    change_unit: str = ""
    neutral: float = 0.0

    @property
    def heading(self) -> str:
        """Label and unit, as a column is titled."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


MEASURES: dict[str, Measure] = {
    "metric": Measure("Preference", "%", 1, "points"),
    "stereotype": Measure("Stereotype pairs", "%", 1, "points"),
    "anti_stereotype": Measure("Anti-stereotype pairs", "%", 1, "points"),
    "ties": Measure("Ties", "%", 1, "points"),
    "margin": Measure("Margin", "nats", 3, "nats"),
    "margin_per_token": Measure("Margin per token", "nats", 4, "nats"),
    "perplexity": Measure("Perplexity", "", 2),
    "perplexity_ratio": Measure("Perplexity ratio", "", 3, neutral=1.0),
    "coverage": Measure("Coverage", "%", 1),
    "precision": Measure("Precision", "%", 1),
    "auroc": Measure("AUROC", "", 3),
    "auprc": Measure("AUPRC", "", 3),
}

BENCHMARKS = {"stereotype_preference": "evaluation pairs", "crows_pairs": "CrowS-Pairs"}
PREFERENCE_KEYS = ("metric", "stereotype", "anti_stereotype", "ties", "margin", "margin_per_token")
DETECTION_KEYS = ("coverage", "precision", "auroc", "auprc")


def show(value: float | None, digits: int, *, signed: bool = False) -> str:
    """Return ``value`` with ``digits`` decimals, or ``n/a`` where it is missing; never 0 for it."""
    if value is None or not math.isfinite(value):
        return MISSING
    # `z` keeps a rounded -0.0 from looking like a decrease.
    kind = f".{digits}f" if abs(value) < 1e6 else ".3e"
    return f"{value:{'+' if signed else ''}z{kind}}"


def interval_of(metric: MetricRecord) -> tuple[float, float] | None:
    """Return the 95 % interval, or None where it or one of its ends is missing."""
    low, high = metric.get("interval_95") or (None, None)
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return None
    return float(low), float(high)


def show_interval(metric: MetricRecord, digits: int, *, signed: bool = False) -> str:
    """Return ``"0.91 to 1.24"``, or ``n/a`` where there is no interval."""
    interval = interval_of(metric)
    if interval is None:
        return MISSING
    low, high = (show(end, digits, signed=signed) for end in interval)
    return f"{low} to {high}"
