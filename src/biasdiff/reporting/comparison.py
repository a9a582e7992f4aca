"""The table and the words of `biasdiff compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from biasdiff.reporting.differences import DECREASED, INCREASED, NOISE, verdict
from biasdiff.reporting.measures import (
    MISSING,
    MetricRecord,
    measure_of,
    show,
    show_interval,
    title_of,
)

SIGNIFICANT = 0.05


def judge(key: str, metric: MetricRecord) -> str:
    """Return what may be said of one difference.

    Where a p-value is adjusted over bias types, the interval alone does not suffice: the adjusted p
    must be below 0.05 too.
    """
    word = verdict(metric, measure_of(key).neutral)
    adjusted = metric.get("p_adjusted")
    if word in (INCREASED, DECREASED) and adjusted is not None and adjusted >= SIGNIFICANT:
        return NOISE
    return word


def print_comparison(record: Mapping[str, Any], console: Console) -> None:
    """Print every difference with its interval, p and verdict, then the verdicts in a sentence."""
    console.print(Text(f"{record['after']} compared with {record['before']}", style="bold"))
    for benchmark, differences in record["differences"].items():
        table = Table(
            title=Text(title_of(benchmark), style="bold"),
            title_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
        )
        table.add_column("Measure", overflow="fold", min_width=8)
        for heading in ("Value", "95 % interval", "p", "n"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("Verdict", overflow="fold")
        for key, metric in differences.items():
            word = judge(key, metric)
            digits = measure_of(key).digits
            signed = measure_of(key).neutral == 0
            table.add_row(
                Text(measure_of(key).label),
                show(metric["value"], digits, signed=signed),
                show_interval(metric, digits, signed=signed),
                _p(metric),
                str(metric["n"]),
                Text(word, style="bold" if word in (INCREASED, DECREASED) else "dim"),
            )
        console.print("", table)
    for line in sentences(record):
        console.print(line, markup=False)


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Say in words what is and what is not distinguishable from noise."""
    lines = []
    for benchmark, differences in record["differences"].items():
        words = {key: judge(key, metric) for key, metric in differences.items()}
        moved = [
            f"{measure_of(k).label} {w}" for k, w in words.items() if w in (INCREASED, DECREASED)
        ]
        still = sum(word not in (INCREASED, DECREASED) for word in words.values())
        said = "; ".join(moved) if moved else "nothing moved beyond noise"
        lines.append(
            f"{title_of(benchmark)}: {said}. {still} of {len(words)} differences are not "
            "distinguishable from noise."
        )
    lines.append("p of bias types is adjusted by Holm's method (marked h).")
    return lines


def _p(metric: MetricRecord) -> str:
    adjusted, p = metric.get("p_adjusted"), metric.get("p_value")
    value = adjusted if adjusted is not None else p
    if value is None:
        return MISSING
    shown = "<0.001" if value < 0.001 else f"{value:.3f}"
    return f"{shown} h" if adjusted is not None else shown
