"""Paired differences between two models and the only words they allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from biasdiff.reporting.measures import (
    BENCHMARKS,
    Measure,
    MetricRecord,
    headline_keys,
    interval_of,
    measure_of,
    title_of,
)

INCREASED, DECREASED = "increased", "decreased"
NOISE = "not distinguishable from noise"
NO_INTERVAL = "no interval, no verdict"


@dataclass(frozen=True)
class Difference:
    """One measure of one comparison.

    Attributes:
        after: Name of the model that is compared.
        before: Name of the model it is compared with.
        benchmark: What it was measured on, empty for perplexity.
        key: Name of the figure; see `measure_of`.
        metric: The paired difference, or ratio, with its interval.
        from_value: The measure of ``before``, None where it is not in the results.
        to_value: The measure of ``after``.
    """

    after: str
    before: str
    benchmark: str
    key: str
    metric: MetricRecord
    from_value: float | None
    to_value: float | None

    @property
    def measure(self) -> Measure:
        """How the difference is shown."""
        return measure_of(self.key)

    @property
    def verdict(self) -> str:
        """What may be said of the difference; see `verdict`."""
        return verdict(self.metric, self.measure.neutral)


def verdict(metric: MetricRecord, neutral: float = 0.0) -> str:
    """Return ``increased`` or ``decreased`` only where the 95 % interval excludes ``neutral``.

    Everything else is ``not distinguishable from noise``, however large the value looks. There is
    no word for better: whether a decrease is welcome depends on which side of its target it ends.
    """
    interval = interval_of(metric)
    if metric["value"] is None or interval is None:
        return NO_INTERVAL
    low, high = interval
    if low > neutral:
        return INCREASED
    return DECREASED if high < neutral else NOISE


def paired_differences(results: Mapping[str, Any]) -> dict[str, list[Difference]]:
    """Return the differences of every comparison ``"after - before"``, in the order of results."""
    return {
        name: _of_comparison(name, record, results["models"])
        for name, record in results["differences"].items()
    }


def _of_comparison(
    name: str, record: Mapping[str, Any], models: Mapping[str, Any]
) -> list[Difference]:
    after, _, before = name.partition(" - ")

    def value(model: str, benchmark: str, key: str) -> float | None:
        metric = models.get(model, {}).get(benchmark, {}).get(key)
        return None if metric is None else metric["value"]

    differences = [
        Difference(
            after,
            before,
            label,
            key,
            record[benchmark][key],
            value(before, benchmark, key),
            value(after, benchmark, key),
        )
        for benchmark, label in BENCHMARKS.items()
        for key in ("margin", "margin_per_token", "metric")
        if key in record.get(benchmark, {})
    ]
    for benchmark in record:
        if benchmark in BENCHMARKS or benchmark == "perplexity":
            continue
        differences += [
            Difference(
                after,
                before,
                title_of(benchmark),
                key,
                metric,
                value(before, benchmark, key),
                value(after, benchmark, key),
            )
            for key, metric in record[benchmark].items()
            if key in headline_keys(benchmark, record[benchmark]) or key == "perplexity_ratio"
        ]
    if "perplexity" in record:
        ends = (value(model, "perplexity", "perplexity") for model in (before, after))
        ratio = record["perplexity"]["perplexity_ratio"]
        differences.append(Difference(after, before, "", "perplexity_ratio", ratio, *ends))
    return differences
