"""The summary in plain words, computed from the numbers and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from biasdiff.reporting.differences import (
    DECREASED,
    INCREASED,
    NO_INTERVAL,
    Difference,
    paired_differences,
)
from biasdiff.reporting.measures import (
    BENCHMARKS,
    MEASURES,
    MetricRecord,
    interval_of,
    show,
    show_interval,
)

# Margin per token is in the table of differences; here it would repeat the margin.
_SUMMARISED = ("margin", "metric", "perplexity_ratio")
_SUMMARISED_BENCHMARKS = ("", *BENCHMARKS.values())


@dataclass(frozen=True)
class Statement:
    """One verdict and the sentence that supports it."""

    measure: str
    verdict: str
    sentence: str


def overview(results: Mapping[str, Any]) -> list[str]:
    """Return sentences on what was run and what the selection found."""
    data, total = results["data"], results["data"]["train"]
    biased = data["train_biased"]
    known = "which of them are biased is not known" if biased is None else f"{biased} known biased"
    methods = [name for name in results["models"] if name not in ("base", "biased")]
    share = show(100 * results["fraction"], 1)
    sentences = [
        f"{results['model']} was fine-tuned on {total} training examples ({known}).",
        f"The {results['estimator']} estimator took {results['selected']} of them ({share} %) "
        "as biased.",
    ]
    found = (results["detection"] or {}).get(results["estimator"])
    if found is not None:
        sentences.append(_found(found, share))
    if methods:
        sentences.append(f"Mitigation was run with: {', '.join(methods)}.")
    else:
        sentences.append("No mitigation was run.")
    return sentences


def statements(results: Mapping[str, Any]) -> dict[str, list[Statement]]:
    """Return the verdicts of every comparison, titled ``"after compared with before"``."""
    comparisons = [rows for rows in paired_differences(results).values() if rows]
    named = {d.benchmark for rows in comparisons for d in rows} & set(BENCHMARKS.values())
    several = len(named) > 1
    return {
        f"{rows[0].after} compared with {rows[0].before}": [
            Statement(_name(d, several), d.verdict, _sentence(d))
            for d in rows
            if d.key in _SUMMARISED and d.benchmark in _SUMMARISED_BENCHMARKS
        ]
        for rows in comparisons
    }


def _found(detection: Mapping[str, MetricRecord], share: str) -> str:
    coverage, precision = (
        f"{show(detection[key]['value'], 1)} %{_aside(detection[key], 1)}"
        for key in ("coverage", "precision")
    )
    return (
        f"The selection holds {coverage} of all biased examples, where a random one of that size "
        f"would hold {share} %; {precision} of what it holds is biased."
    )


def _name(difference: Difference, several_benchmarks: bool) -> str:
    if difference.key == "perplexity_ratio":
        return "Perplexity"
    where = f" on {difference.benchmark}" if several_benchmarks else ""
    return f"{difference.measure.label}{where}"


def _sentence(difference: Difference) -> str:
    measure, metric = difference.measure, difference.metric
    ratio = difference.key == "perplexity_ratio"
    shown = MEASURES["perplexity"] if ratio else measure
    unit = f" {shown.unit}" if shown.unit else ""
    path = f"from {show(difference.from_value, shown.digits)} to "
    path += f"{show(difference.to_value, shown.digits)}{unit}"
    if metric["value"] is None:
        return f"{path}; difference n/a."
    if ratio:
        size = f"{show(metric['value'], measure.digits)} times as high"
    else:
        size = f"{show(metric['value'], measure.digits, signed=True)} {measure.change_unit}"
    aside = _aside(metric, measure.digits, signed=not ratio)
    if difference.verdict in (INCREASED, DECREASED):
        return f"{size}{aside}, {path}."
    if difference.verdict == NO_INTERVAL:
        return f"{size}, {path}, without an interval to judge it by."
    neutral = show(measure.neutral, 0)
    return f"{size}{aside}, an interval that includes {neutral}; {path}."


def _aside(metric: MetricRecord, digits: int, *, signed: bool = False) -> str:
    if interval_of(metric) is None:
        return ""
    return f" (95 % interval {show_interval(metric, digits, signed=signed)})"
