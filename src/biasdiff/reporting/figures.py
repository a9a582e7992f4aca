"""The figures of the report, as the plain dicts that plotly.js draws.

Plain dicts rather than ``plotly.graph_objects``: they are JSON already and cost no import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from biasdiff.reporting.measures import (
    BENCHMARKS,
    MEASURES,
    MetricRecord,
    interval_of,
    show,
    show_interval,
)

Figure = dict[str, Any]
"""``data`` and ``layout`` of one figure."""

# After Okabe and Ito: told apart with any colour vision, darkened to 3:1 against white. Symbols and
# dashes repeat the distinction.
COLOURS = ("#0072b2", "#d55e00", "#00805e", "#8f4a9c", "#a07400", "#4a8fc0")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "star", "x")
DASHES = ("solid", "dash", "dot", "dashdot")
INK, MUTED, GRID = "#1c2430", "#5b6675", "#e3e7ec"
_ABSENT: MetricRecord = {"value": None, "n": 0}


@dataclass(frozen=True)
class _Series:
    name: str
    metrics: Sequence[MetricRecord | None]
    colour: str
    symbol: str


def report_figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures that the results allow, by the id of the element they are drawn in."""
    figures = {
        "figure-margin": _models_figure(results, "margin", reference=0),
        "figure-preference": _models_figure(results, "metric", reference=50),
        "figure-differences": _differences_figure(results),
        "figure-margin-by-type": _by_type_figure(results),
        "figure-scores": _scores_figure(results["score_distribution"]),
    }
    if results["curves"]:
        for key in ("coverage", "precision"):
            figures[f"figure-{key}"] = _curve_figure(results, key)
    return {name: figure for name, figure in figures.items() if figure["data"]}


def bias_types(results: Mapping[str, Any]) -> list[str]:
    """Return the bias types that the evaluation pairs of any model have, in order."""
    keys = (
        key
        for benchmarks in results["models"].values()
        for key in benchmarks.get("stereotype_preference", {})
        if key.startswith("margin/")
    )
    return list(dict.fromkeys(key.removeprefix("margin/") for key in keys))


def _models_figure(results: Mapping[str, Any], key: str, *, reference: float) -> Figure:
    models = results["models"]
    present = [b for b in BENCHMARKS if any(b in record for record in models.values())]
    series = [
        _Series(
            BENCHMARKS[benchmark],
            [models[name].get(benchmark, {}).get(key) for name in models],
            COLOURS[i],
            SYMBOLS[i],
        )
        for i, benchmark in enumerate(present)
    ]
    return _interval_figure(list(models), series, key, reference, MEASURES[key].heading)


def _differences_figure(results: Mapping[str, Any]) -> Figure:
    differences = results["differences"]
    present = [b for b in BENCHMARKS if any(b in record for record in differences.values())]
    series = [
        _Series(
            BENCHMARKS[benchmark],
            [record.get(benchmark, {}).get("margin") for record in differences.values()],
            COLOURS[i],
            SYMBOLS[i],
        )
        for i, benchmark in enumerate(present)
    ]
    return _interval_figure(
        list(differences), series, "margin", 0, "Paired difference in margin, nats"
    )


def _by_type_figure(results: Mapping[str, Any]) -> Figure:
    types = bias_types(results)
    series = []
    for i, (name, benchmarks) in enumerate(results["models"].items()):
        record = benchmarks.get("stereotype_preference", {})
        # The base model is the backdrop the others are read against, hence its grey.
        colour = MUTED if name == "base" else COLOURS[i % len(COLOURS)]
        metrics = [record.get(f"margin/{bias_type}") for bias_type in types]
        series.append(_Series(name, metrics, colour, SYMBOLS[i % len(SYMBOLS)]))
    return _interval_figure(types, series, "margin", 0, MEASURES["margin"].heading)


def _interval_figure(
    groups: Sequence[str], series: Sequence[_Series], key: str, reference: float, title: str
) -> Figure:
    """Draw a dot and its 95 % interval per group and series, the series of a group side by side."""
    step = 0.6 / max(len(series), 1)
    data = [
        _interval_trace(groups, one, key, (i - (len(series) - 1) / 2) * step)
        for i, one in enumerate(series)
    ]
    positions = list(range(len(groups)))
    row = max(38, 15 * len(series) + 10)
    layout = _layout(height=80 + row * len(groups) + 26 * (len(series) > 1), x_title=title)
    layout["yaxis"] |= {
        "tickvals": positions,
        "ticktext": [escape(group, quote=False) for group in groups],
        "range": [len(groups) - 0.5, -0.5],
        "showgrid": False,
    }
    layout["shapes"] = [_vertical_line(reference)]
    layout["showlegend"] = len(series) > 1
    return {"data": data if groups else [], "layout": layout}


def _interval_trace(groups: Sequence[str], one: _Series, key: str, offset: float) -> Figure:
    digits, unit = MEASURES[key].digits, MEASURES[key].unit
    metrics = [metric or _ABSENT for metric in one.metrics]
    ends = [interval_of(m) if m["value"] is not None else None for m in metrics]
    hover = [
        f"<b>{escape(f'{group}, {one.name}', quote=False)}</b>"
        f"<br>{show(metric['value'], digits)} {unit}"
        f"<br>95 %: {show_interval(metric, digits)}<br>n = {metric['n']}"
        for group, metric in zip(groups, metrics, strict=True)
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(one.name, quote=False),
        "x": [metric["value"] for metric in metrics],
        "y": [i + offset for i in range(len(groups))],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [e and e[1] - m["value"] for e, m in zip(ends, metrics, strict=True)],
            "arrayminus": [e and m["value"] - e[0] for e, m in zip(ends, metrics, strict=True)],
            "color": one.colour,
            "thickness": 1.6,
            "width": 3,
        },
        "marker": {"color": one.colour, "symbol": one.symbol, "size": 8},
        "hovertext": hover,
        "hoverinfo": "text",
    }


def _curve_figure(results: Mapping[str, Any], key: str) -> Figure:
    data = []
    baselines = [name for name in results["curves"] if name in results["baselines"]]
    estimators = [name for name in results["curves"] if name not in baselines]
    for name, curve in results["curves"].items():
        baseline = name in baselines
        rank = baselines.index(name) if baseline else estimators.index(name)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": escape(name.replace("_", " "), quote=False),
                "x": [100 * fraction for fraction in curve["fraction"]],
                "y": list(curve[key]),
                "line": {
                    "color": "#7b8694" if baseline else COLOURS[rank % len(COLOURS)],
                    "dash": DASHES[1 + rank % (len(DASHES) - 1)] if baseline else "solid",
                    "width": 1.6 if baseline else 2.4,
                },
                "hovertemplate": "%{x:.0f} % selected: %{y:.1f} %",
            }
        )
    layout = _layout(
        height=380, x_title="Selected share of the train set, %", y_title=MEASURES[key].heading
    )
    layout["xaxis"]["range"] = [0, 101]
    layout["yaxis"]["range"] = [0, 104]
    selected = 100 * results["fraction"]
    layout["shapes"] = [_vertical_line(selected)]
    layout["annotations"] = [
        {
            "x": selected,
            "y": 0.02,
            "yref": "paper",
            "text": f"selected: {show(selected, 1)} %",
            "showarrow": False,
            "xanchor": "left" if selected < 60 else "right",
            "xshift": 4 if selected < 60 else -4,
            "yanchor": "bottom",
            "font": {"color": INK, "size": 12},
            "bgcolor": "rgba(255,255,255,0.85)",
        }
    ]
    layout["showlegend"] = True
    return {"data": data, "layout": layout}


def _scores_figure(distribution: Mapping[str, Sequence[float | None]]) -> Figure:
    shown = {name: scores for name, scores in distribution.items() if scores}
    data = [
        {
            "type": "box",
            "orientation": "h",
            "name": escape(f"{name} ({len(scores)})", quote=False),
            "x": list(scores),
            "boxpoints": "outliers",
            "marker": {"color": colour, "size": 4},
            "line": {"color": colour, "width": 1.6},
        }
        for name, scores in shown.items()
        for colour in [MUTED if name == "not biased" else COLOURS[0]]
    ]
    layout = _layout(height=90 + 36 * len(shown), x_title="Influence score")
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False}
    layout["shapes"] = [_vertical_line(0)]
    layout["showlegend"] = False
    return {"data": data, "layout": layout}


def _vertical_line(x: float) -> dict[str, Any]:
    line = {"color": INK, "width": 1.5, "dash": "5px,3px"}
    ends = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", "layer": "between", "line": line} | ends


def _layout(*, height: int, x_title: str, y_title: str = "") -> dict[str, Any]:
    # Fixed ranges leave touch and wheel to the page, which is long.
    axis = {
        "automargin": True,
        "fixedrange": True,
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "ticklabelstandoff": 4,
    }
    title_font = {"size": 12, "color": MUTED}
    return {
        "height": height,
        "margin": {"l": 10, "r": 16, "t": 12, "b": 10},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
        "hoverlabel": {"align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
        "xaxis": axis | {"title": {"text": x_title, "font": title_font}},
        "yaxis": axis | {"title": {"text": y_title, "font": title_font}},
    }
