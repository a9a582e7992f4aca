"""``biasdiff report``: gather what the stages of a run found, as JSON and as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from biasdiff.pipeline.artifacts import Artifact, file_fingerprint, read_json, write_json
from biasdiff.pipeline.attribute import RECORD_FILE
from biasdiff.pipeline.estimators import chosen_estimators
from biasdiff.pipeline.layout import RunLayout, open_run
from biasdiff.pipeline.results import gather
from biasdiff.pipeline.scores import scores_file
from biasdiff.pipeline.select import SELECTION_FILE
from biasdiff.reporting.html import render_html

RESULTS_FILE = "results.json"
REPORT_FILE = "report.html"


def report(run: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Gather a finished run's results and write them as an HTML report.

    Args:
        run: Run directory.
        out: HTML file to write; None to return the results only.

    Returns:
        The results, as in ``results.json``.
    """
    layout = open_run(run)
    results = gather(layout)
    if out is not None:
        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render_html(results), encoding="utf-8")
    return results


def plan_report(layout: RunLayout) -> Artifact:
    """Describe the report stage of a run without running it."""
    attribution = layout.stage("attribute")
    names = chosen_estimators(layout.config)
    files = {
        "train": Path(layout.data("train")),
        "attribution": attribution / RECORD_FILE,
        "selection": layout.stage("select") / SELECTION_FILE,
        **{m: layout.evaluation(m) for m in layout.models},
        **{
            f"scores {n}": attribution / scores_file(n, layout.config.attribution.estimator)
            for n in names
        },
    }

    def build(folder: Path) -> None:
        results = gather(layout)
        write_json(folder / RESULTS_FILE, results)
        (folder / REPORT_FILE).write_text(render_html(results), encoding="utf-8")

    return Artifact(
        "report",
        layout.stage("report"),
        {"models": layout.models, "estimators": list(names)},
        {name: file_fingerprint(path) for name, path in files.items()},
        build,
    )


def load_results(layout: RunLayout) -> dict[str, Any]:
    """Return the results that the report stage wrote."""
    return read_json(layout.stage("report") / RESULTS_FILE)
