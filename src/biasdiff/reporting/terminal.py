"""The tables at the end of a run or of one evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from biasdiff.reporting.differences import DECREASED, INCREASED, Difference, paired_differences
from biasdiff.reporting.measures import (
    BENCHMARKS,
    MISSING,
    MetricRecord,
    headline_keys,
    interval_of,
    measure_of,
    show,
    show_interval,
    title_of,
)


def print_report(results: Mapping[str, Any], console: Console) -> None:
    """Print models, paired differences and, where the truth is known, detection.

    Made for 80 columns: where a table is wider than the console, names fold and numbers stay whole.
    """
    models, comparisons = results["models"], paired_differences(results)
    for i, (benchmark, label) in enumerate(BENCHMARKS.items()):
        if any(benchmark in record for record in models.values()):
            console.print(_models(models, benchmark), "")
        # Perplexity belongs to no benchmark and is printed once, with the first.
        shown = {label, ""} if i == 0 else {label}
        rows = {
            name: [d for d in differences if d.benchmark in shown]
            for name, differences in comparisons.items()
        }
        if any(rows.values()):
            console.print(_differences(f"Paired differences on {label}", rows), "")
    others = {
        name: [d for d in differences if d.benchmark not in ("", *BENCHMARKS.values())]
        for name, differences in comparisons.items()
    }
    if any(others.values()):
        console.print(_differences("Paired differences on further benchmarks", others), "")
    if results["detection"]:
        console.print(_detection(results))
    else:
        console.print("Detection: n/a, which training examples are biased is not known.")


def print_evaluation(record: Mapping[str, Any], console: Console) -> None:
    """Print the overall metrics of one evaluated model, those of the bias types left out."""
    model, adapter = record["model"], record.get("adapter")
    table = _table(f"{model} with {adapter}" if adapter else str(model))
    _name_column(table, "Measure")
    _number_columns(table, "Value", "95 % interval", "SE", "n")
    for benchmark, metrics in record["metrics"].items():
        table.add_row(Text(title_of(benchmark), style="bold"))
        for key in headline_keys(benchmark, metrics):
            table.add_row(
                Text(f"  {measure_of(key).heading}"),
                _value(metrics[key], key),
                _interval(metrics[key], key),
                show(metrics[key]["standard_error"], measure_of(key).digits),
                str(metrics[key]["n"]),
            )
    scoring = record["settings"]["scoring"].partition(":")[0]
    table.caption = f"No preference: 50 % and 0 nats. Pairs are scored by '{scoring}'."
    console.print(table)


def _models(models: Mapping[str, Any], benchmark: str) -> Table:
    table = _table(f"Models on {BENCHMARKS[benchmark]}")
    _name_column(table, "Model")
    _number_columns(table, "Preference, %", "95 % interval", "Margin, nats", "Perplexity")
    for name, record in models.items():
        metrics = record.get(benchmark, {})
        preference = metrics.get("metric")
        table.add_row(
            Text(name),
            _value(preference, "metric"),
            _interval(preference, "metric"),
            _with_error(metrics.get("margin"), "margin"),
            _value(record.get("perplexity", {}).get("perplexity"), "perplexity"),
        )
    table.caption = "No preference: 50 % and 0 nats. Margin with its standard error."
    return table


def _differences(title: str, comparisons: Mapping[str, list[Difference]]) -> Table:
    table = _table(title)
    _name_column(table, "Comparison")
    _number_columns(table, "Value", "95 % interval")
    table.add_column("Verdict", overflow="fold")
    for name, differences in comparisons.items():
        table.add_row(Text(name, style="bold"), "", "", "")
        for d in differences:
            digits, signed = d.measure.digits, d.key != "perplexity_ratio"
            table.add_row(
                Text(f"  {d.measure.label}" + _where(d)),
                show(d.metric["value"], digits, signed=signed),
                show_interval(d.metric, digits, signed=signed),
                Text(d.verdict, style="bold" if d.verdict in (INCREASED, DECREASED) else "dim"),
            )
    table.caption = (
        "Preference in points, margins in nats. Increased or decreased is said only where the "
        "interval excludes 0 (1 for the ratio)."
    )
    return table


def _where(difference: Difference) -> str:
    named = difference.benchmark not in ("", *BENCHMARKS.values())
    return f" ({difference.benchmark})" if named else ""


def _detection(results: Mapping[str, Any]) -> Table:
    share = show(100 * results["fraction"], 1)
    table = _table(f"Detection of biased examples at {share} % selected")
    _name_column(table, "Score")
    _number_columns(table, "Coverage, %", "Precision, %", "AUROC", "AUPRC")
    for name, record in results["detection"].items():
        used = name == results["estimator"]
        cells = [_two_lines(record.get(key), key) for key in ("coverage", "precision")]
        cells += [_two_lines(record.get(key), key) for key in ("auroc", "auprc")]
        table.add_row(Text(name.replace("_", " ") + (" (used)" if used else "")), *cells)
    table.caption = "Under each value: its 95 % interval."
    return table


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        caption_justify="left",
        caption_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )


def _name_column(table: Table, heading: str) -> None:
    # Names are the user's and may be long: they give way, so that no number is cut.
    table.add_column(heading, overflow="fold", min_width=8)


def _number_columns(table: Table, *headings: str) -> None:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)


def _value(metric: MetricRecord | None, key: str) -> str:
    return MISSING if metric is None else show(metric["value"], measure_of(key).digits)


def _interval(metric: MetricRecord | None, key: str) -> str:
    return MISSING if metric is None else show_interval(metric, measure_of(key).digits)


def _with_error(metric: MetricRecord | None, key: str) -> str:
    value = _value(metric, key)
    error = None if metric is None else metric["standard_error"]
    return value if error is None else f"{value} ± {show(error, measure_of(key).digits)}"


def _two_lines(metric: MetricRecord | None, key: str) -> str:
    value = _value(metric, key)
    if metric is None or interval_of(metric) is None:
        return value
    return f"{value}\n{_interval(metric, key)}"
