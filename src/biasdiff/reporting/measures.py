"""What each figure is called and how it is printed, in HTML and in the terminal alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    "perplexity_per_byte": Measure("Perplexity per byte", "", 3),
    "perplexity_ratio": Measure("Perplexity ratio", "", 3, neutral=1.0),
    "lms": Measure("LMS", "", 2, "points"),
    "ss": Measure("SS", "", 2, "points"),
    "icat": Measure("ICAT", "", 2, "points"),
    "mean_abs_d": Measure("Mean |d|", "", 3),
    "accuracy": Measure("Accuracy", "%", 1, "points"),
    "bias": Measure("Bias score", "", 3),
    "exact_match": Measure("Exact match", "%", 1, "points"),
    "contains": Measure("Contains the answer", "%", 1, "points"),
    "rank_1": Measure("Ranked first", "%", 1, "points"),
    "rank_mean_reciprocal": Measure("Mean reciprocal rank", "", 3),
    "unknown": Measure("Cannot be determined", "%", 1, "points"),
    "stereotyped": Measure("Stereotyped answer", "%", 1, "points"),
    "other": Measure("Other person", "%", 1, "points"),
    "refusal": Measure("Refusals", "%", 1, "points"),
    "unparsable": Measure("Unparsable", "%", 1, "points"),
    "toxic": Measure("Toxic continuations", "%", 1, "points"),
    "mean_toxicity": Measure("Mean toxicity", "", 3),
    "expected_maximum_toxicity": Measure("Expected maximum toxicity", "", 3),
    "correlation": Measure("Correlation with real shares", "", 3),
    "undecided": Measure("Undecided questions", "%", 1, "points"),
    "coverage": Measure("Coverage", "%", 1),
    "precision": Measure("Precision", "%", 1),
    "auroc": Measure("AUROC", "", 3),
    "auprc": Measure("AUPRC", "", 3),
}

BENCHMARKS = {"stereotype_preference": "evaluation pairs", "crows_pairs": "CrowS-Pairs"}
"""Those that compare the two sides of pairs, and are shown in full."""

HEADLINES: dict[str, tuple[str, tuple[str, ...]]] = {
    "perplexity": ("held-out texts", ("perplexity", "perplexity_per_byte")),
    "wikitext2": ("WikiText-2", ("perplexity", "perplexity_per_byte")),
    "stereoset": (
        "StereoSet",
        tuple(
            f"{part}/{figure}"
            for part in ("intrasentence", "intersentence")
            for figure in ("lms", "ss", "icat")
        ),
    ),
    "seat": (
        "SEAT and WEAT",
        ("mean_abs_d", "mean_abs_d/gender", "mean_abs_d/race-color", "mean_abs_d/religion"),
    ),
    "winobias": ("WinoBias", ("metric", "margin")),
    "winogender": ("Winogender", ("metric", "margin", "correlation")),
    "bbq": (
        "BBQ",
        ("ambiguous/accuracy", "ambiguous/bias", "disambiguated/accuracy", "disambiguated/bias"),
    ),
    "cloze": ("cloze facts", ("exact_match", "contains", "rank_1", "rank_mean_reciprocal")),
    "multiple_choice": (
        "ambiguous questions",
        (
            "unknown",
            "stereotyped",
            "other",
            "refusal",
            "unparsable",
            "bias",
            "likelihood/unknown",
            "likelihood/stereotyped",
            "likelihood/other",
            "likelihood/bias",
        ),
    ),
    "generation": (
        "generation",
        ("toxic", "mean_toxicity", "expected_maximum_toxicity"),
    ),
}
"""Title of every other benchmark, and the figures that tables show of it; files hold all."""

PREFERENCE_KEYS = ("metric", "stereotype", "anti_stereotype", "ties", "margin", "margin_per_token")
DETECTION_KEYS = ("coverage", "precision", "auroc", "auprc")


SHARES_OF_THE_HARNESS = ("exact_match",)
"""Figures that lm-evaluation-harness gives as ``task/NAME`` between 0 and 1, ours in percent."""


def measure_of(key: str) -> Measure:
    """Return how a figure is shown: its own measure, or that of a part of its name.

    ``intrasentence/ss`` is SS of intrasentence, ``metric/age`` the preference of age; a name that
    holds no known measure is its own label.
    """
    if key in MEASURES:
        return MEASURES[key]
    parts = key.split("/")
    for place in (len(parts) - 1, 0):
        if parts[place] in MEASURES and (place == 0 or parts[place] not in SHARES_OF_THE_HARNESS):
            rest = ", ".join(part for i, part in enumerate(parts) if i != place)
            known = MEASURES[parts[place]]
            return replace(known, label=f"{known.label}, {rest}")
    return Measure(key, "", 3)


def title_of(benchmark: str) -> str:
    """Return what a benchmark is called; its name where it has no title."""
    if benchmark in BENCHMARKS:
        return BENCHMARKS[benchmark]
    return HEADLINES[benchmark][0] if benchmark in HEADLINES else benchmark


def headline_keys(benchmark: str, metrics: Mapping[str, Any]) -> list[str]:
    """Return the figures of a benchmark that tables show, as far as they were measured."""
    if benchmark in BENCHMARKS:
        return [key for key in PREFERENCE_KEYS if key in metrics]
    if benchmark in HEADLINES:
        return [key for key in HEADLINES[benchmark][1] if key in metrics]
    return list(metrics)


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
