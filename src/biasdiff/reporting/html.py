"""One HTML file that holds the whole report and opens without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from biasdiff.options import flattened
from biasdiff.reporting.differences import paired_differences
from biasdiff.reporting.figures import bias_types, report_figures
from biasdiff.reporting.measures import (
    BENCHMARKS,
    DETECTION_KEYS,
    MEASURES,
    MISSING,
    PREFERENCE_KEYS,
    MetricRecord,
    headline_keys,
    interval_of,
    measure_of,
    show,
    show_interval,
    title_of,
)
from biasdiff.reporting.summary import overview, statements

LONGEST_TEXT = 600

Row = dict[str, Any]


def render_html(results: dict[str, Any]) -> str:
    """Return the report of ``results`` (results.json, schema 1) as one self-contained page.

    plotly.js is inlined, every text of the results is escaped, and a content security policy in
    the page refuses all requests. Missing values are shown as ``n/a``; parts without data, such
    as detection where the truth is unknown, say so.
    """
    # Importing plotly takes half a second that the other verbs need not pay.
    from plotly.offline import get_plotlyjs

    figures = report_figures(results)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            results=results,
            overview=overview(results),
            statements=statements(results),
            model_tables=[*_model_tables(results), *_other_tables(results)],
            bias_types=list(_bias_type_rows(results)),
            differences=list(_difference_rows(results)),
            detection=_detection_table(results),
            examples={side: _example_rows(rows) for side, rows in results["examples"].items()},
            explanations=[_explanation(one) for one in results.get("explanations", [])],
            settings=list(_setting_rows(results["settings"])),
            timings=list(_timing_rows(results["timings"])),
            figures=figures,
            figures_json=script_json(figures),
            plotly_js=script_source(get_plotlyjs()),
        )
    )


def script_json(value: Any) -> Markup:
    """Return ``value`` as JSON that cannot end or alter the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def script_source(javascript: str) -> Markup:
    """Return trusted JavaScript with ``</script`` inside its strings made harmless."""
    return Markup(javascript.replace("</script", r"<\/script"))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("biasdiff", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value, digits: _minus(show(value, digits))
    environment.filters["minus"] = _minus
    return environment


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _cell(metric: MetricRecord | None, key: str, *, signed: bool = False) -> Row:
    """Return the texts of one table cell; lines that would be empty are None."""
    if metric is None:
        return {"value": MISSING, "interval": None, "error": None}
    digits = measure_of(key).digits
    error = metric["standard_error"]
    known = metric["value"] is not None
    interval = show_interval(metric, digits, signed=signed)
    return {
        "value": _minus(show(metric["value"], digits, signed=signed)),
        "interval": _minus(interval) if known and interval_of(metric) else None,
        "error": show(error, digits) if known and error is not None else None,
    }


def _model_tables(results: Mapping[str, Any]) -> Iterator[Row]:
    """Yield one table per benchmark; perplexity stands beside the first."""
    models = results["models"]
    for i, (benchmark, label) in enumerate(BENCHMARKS.items()):
        if not any(benchmark in record for record in models.values()):
            continue
        columns = [(benchmark, key) for key in PREFERENCE_KEYS]
        columns += [("perplexity", "perplexity")] if i == 0 else []
        yield {
            "label": label,
            "heads": [
                {"text": MEASURES[key].heading, "n": _first_n(models, place, key)}
                for place, key in columns
            ],
            "rows": [
                {
                    "name": name,
                    "cells": [_cell(record.get(place, {}).get(key), key) for place, key in columns],
                }
                for name, record in models.items()
            ],
        }


def _other_tables(results: Mapping[str, Any]) -> Iterator[Row]:
    """Yield one table for each further benchmark, figures as rows of models' columns."""
    models = results["models"]
    names = dict.fromkeys(name for record in models.values() for name in record)
    for benchmark in names:
        if benchmark in BENCHMARKS or benchmark == "perplexity":
            continue
        first = next(record[benchmark] for record in models.values() if benchmark in record)
        keys = headline_keys(benchmark, first)
        yield {
            "label": title_of(benchmark),
            "heads": [
                {"text": measure_of(key).heading, "n": _first_n(models, benchmark, key)}
                for key in keys
            ],
            "rows": [
                {
                    "name": name,
                    "cells": [_cell(record.get(benchmark, {}).get(key), key) for key in keys],
                }
                for name, record in models.items()
            ],
        }


def _first_n(models: Mapping[str, Any], benchmark: str, key: str) -> int | None:
    # The models of a run are scored on the same examples, so the first one's count is everyone's.
    for record in models.values():
        if key in record.get(benchmark, {}):
            return int(record[benchmark][key]["n"])
    return None


def _bias_type_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    models = results["models"]
    for bias_type in bias_types(results):
        records = [record.get("stereotype_preference", {}) for record in models.values()]
        yield {
            "name": bias_type,
            "n": _first_n(models, "stereotype_preference", f"margin/{bias_type}"),
            "cells": [_cell(record.get(f"margin/{bias_type}"), "margin") for record in records],
        }


def _difference_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    for name, differences in paired_differences(results).items():
        for i, difference in enumerate(differences):
            unit = difference.measure.change_unit
            signed = difference.key != "perplexity_ratio"
            yield {
                "comparison": name,
                "span": len(differences) if i == 0 else 0,
                "measure": difference.measure.label + (f", {unit}" if unit else ""),
                "benchmark": difference.benchmark or "held-out texts",
                "cell": _cell(difference.metric, difference.key, signed=signed),
                "n": difference.metric["n"],
                "verdict": difference.verdict,
            }


def _detection_table(results: Mapping[str, Any]) -> Row | None:
    detection = results["detection"]
    if not detection:
        return None
    return {
        "heads": [
            {"text": MEASURES[key].heading, "n": next(iter(detection.values()))[key]["n"]}
            for key in DETECTION_KEYS
        ],
        "rows": [
            {
                "name": name.replace("_", " "),
                "used": name == results["estimator"],
                "cells": [_cell(record.get(key), key) for key in DETECTION_KEYS],
            }
            for name, record in detection.items()
        ],
    }


def _example_rows(examples: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [
        {
            "row": example["row"],
            "text": _clipped(example["text"]),
            "score": _minus(_significant(example["score"])),
            "truth": _truth(example),
            "selected": "yes" if example["selected"] else "no",
        }
        for example in examples
    ]


def _explanation(example: Mapping[str, Any]) -> Row:
    """Return tokens, each with the strength of its colour: 60 for the strongest of the example."""
    values = example["contributions"]
    strongest = max((abs(value) for value in values), default=0.0) or 1.0
    return {
        "row": example["row"],
        "score": _minus(_significant(example["score"])),
        "momentum": _minus(_significant(example["momentum"])),
        "tokens": [
            {
                "text": text,
                "value": _minus(_significant(value)),
                "side": "up" if value > 0 else "down",
                "strength": round(60 * abs(value) / strongest),
            }
            for text, value in zip(example["tokens"], values, strict=True)
        ],
    }


def _truth(example: Mapping[str, Any]) -> str:
    if example["is_bias"] is None:
        return "unknown"
    return str(example["bias_type"] or "biased") if example["is_bias"] else "not biased"


def _clipped(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]} … ({len(text) - LONGEST_TEXT} more characters)"


def _significant(value: float | None) -> str:
    # Scores of different estimators differ by orders of magnitude.
    return MISSING if value is None else f"{value:#.4g}".removesuffix(".")


def _setting_rows(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield ``section.key`` and the value as JSON, in the order of the config."""
    for name, value in flattened(settings).items():
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def _timing_rows(timings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for stage, seconds in timings.get("stages", {}).items():
        yield stage, _duration(seconds)
    for name, value in timings.get("attribution", {}).items():
        yield f"attribution, {name.replace('_', ' ')}", _significant(value)
    peak = timings.get("peak_memory_bytes")
    yield "peak memory", MISSING if peak is None else f"{peak / 2**30:.2f} GiB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
