"""The results of a run in one dict: what `results.json` holds and the report shows.

Everything but ``timings`` and ``versions`` depends on settings and inputs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from biasdiff.attribution.registry import ESTIMATORS
from biasdiff.data.records import TrainExample, load_train_set
from biasdiff.errors import ArtifactError
from biasdiff.evaluation.detection import detection_curve, detection_metrics
from biasdiff.evaluation.registry import BENCHMARKS
from biasdiff.pipeline.artifacts import STAGE_FILE, read_json
from biasdiff.pipeline.attribute import RECORD_FILE
from biasdiff.pipeline.estimators import chosen_estimators
from biasdiff.pipeline.evaluate import PERPLEXITY, PREFERENCE, scores_path
from biasdiff.pipeline.layout import BASE, BIASED, RunLayout
from biasdiff.pipeline.scores import EXPLANATIONS_FILE, SCORES_FILE, scores_file
from biasdiff.pipeline.select import SELECTION_FILE
from biasdiff.pipeline.versions import library_versions
from biasdiff.results import Metric, finite_or_none

SCHEMA = 1
EXAMPLES_SHOWN = 12


def gather(layout: RunLayout) -> dict[str, Any]:
    """Read the stages of a run and compute comparisons and detection.

    Raises:
        ArtifactError: If a stage that the report needs has not been run.
    """
    _require_stages(layout)
    config = layout.config
    examples = load_train_set(layout.data("train"), text_column=config.data.text_column)
    attribution = layout.stage("attribute")
    record = read_json(attribution / RECORD_FILE)
    scores = pd.read_parquet(attribution / SCORES_FILE)
    selection = pd.read_parquet(layout.stage("select") / SELECTION_FILE)
    evaluations = {name: read_json(layout.evaluation(name)) for name in layout.models}
    truths = [example.is_bias for example in examples]
    known = all(truth is not None for truth in truths)
    truth = np.array(truths, dtype=np.int64) if known else None
    columns = _score_columns(layout)
    selected = int(selection["selected"].sum())
    fraction = selected / len(examples)
    metrics = {name: evaluation["metrics"] for name, evaluation in evaluations.items()}
    return {
        "schema": SCHEMA,
        "name": config.name,
        "model": config.model.name,
        "data": {
            "train": len(examples),
            "train_biased": int(truth.sum()) if truth is not None else None,
            "probe_pairs": record["probe_pairs"],
            "evaluation_pairs": metrics[BASE][PREFERENCE]["metric"]["n"],
            "held_out_texts": metrics[BASE][PERPLEXITY]["perplexity"]["n"],
        },
        "models": metrics,
        "differences": _differences(layout),
        "estimator": config.attribution.estimator,
        "fraction": fraction,
        "selected": selected,
        "detection": None
        if truth is None
        else {
            name: _json(detection_metrics(values, truth, fraction=fraction, seed=config.seed))
            for name, values in columns.items()
        },
        "curves": None
        if truth is None
        else {name: detection_curve(values, truth) for name, values in columns.items()},
        "score_distribution": _distribution(scores, examples, known=known),
        "examples": _extremes(scores, examples, selection),
        "explanations": _explanations(attribution),
        "baselines": [n for n, e in ESTIMATORS.items() if getattr(e, "is_baseline", False)],
        "settings": config.model_dump(mode="json"),
        "versions": library_versions(),
        "timings": _timings(layout, record),
    }


def _json(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {name: metric.to_json() for name, metric in metrics.items()}


def _require_stages(layout: RunLayout) -> None:
    names = ["attribute", "select", *(f"evaluate-{model}" for model in layout.models)]
    missing = [name for name in names if not (layout.stage(name) / STAGE_FILE).is_file()]
    if missing:
        raise ArtifactError(
            f"{layout.folder} lacks the stages {', '.join(missing)}",
            expected="a finished run",
            remedy="go on with 'biasdiff run' and its config",
        )


def _score_columns(layout: RunLayout) -> dict[str, np.typing.NDArray[np.float64]]:
    folder, main = layout.stage("attribute"), layout.config.attribution.estimator
    return {
        name: pd.read_parquet(folder / scores_file(name, main))["score"].to_numpy(np.float64)
        for name in chosen_estimators(layout.config)
    }


def _differences(layout: RunLayout) -> dict[str, Any]:
    measured = read_json(layout.evaluation(BASE))["metrics"]
    benchmarks = [BENCHMARKS[name] for name in measured]
    frames = {
        model: {
            b.name: pd.read_parquet(scores_path(layout.evaluation(model), b.name))
            for b in benchmarks
        }
        for model in layout.models
    }
    compared = [(BIASED, BASE)]
    for method in layout.config.mitigation.methods:
        compared += [(method, BIASED), (method, BASE)]
    return {
        f"{after} - {before}": {
            b.name: _json(b.compare(frames[after][b.name], frames[before][b.name]))
            for b in benchmarks
        }
        for after, before in compared
    }


def _distribution(
    scores: pd.DataFrame, examples: Sequence[TrainExample], *, known: bool
) -> dict[str, list[float | None]]:
    groups: dict[str, list[float | None]] = {}
    for value, example in zip(scores["score"], examples, strict=True):
        label = "all examples"
        if known:
            label = "not biased" if not example.is_bias else example.bias_type or "biased"
        groups.setdefault(label, []).append(finite_or_none(value))
    return dict(sorted(groups.items(), key=lambda item: (item[0] != "not biased", item[0])))


def _extremes(
    scores: pd.DataFrame, examples: Sequence[TrainExample], selection: pd.DataFrame
) -> dict[str, list[dict[str, Any]]]:
    order = np.argsort(-scores["score"].to_numpy(), kind="stable")
    chosen = selection["selected"].to_numpy()

    def shown(row: int) -> dict[str, Any]:
        example = examples[row]
        return {
            "id": example.id,
            "row": example.row,
            "text": example.shown(),
            "score": finite_or_none(float(scores["score"].iloc[row])),
            "is_bias": example.is_bias,
            "bias_type": example.bias_type,
            "selected": bool(chosen[row]),
        }

    return {
        "most": [shown(int(row)) for row in order[:EXAMPLES_SHOWN]],
        "least": [shown(int(row)) for row in order[::-1][:EXAMPLES_SHOWN]],
    }


def _explanations(folder: Path) -> list[dict[str, Any]]:
    """Return the examples that attribution took apart by tokens, none where it was not asked to."""
    file = folder / EXPLANATIONS_FILE
    return read_json(file)["examples"] if file.is_file() else []


def _timings(layout: RunLayout, attribution: dict[str, Any]) -> dict[str, Any]:
    stages = {
        folder.name: read_json(folder / STAGE_FILE)["seconds"]
        for folder in sorted(layout.folder.iterdir())
        if (folder / STAGE_FILE).is_file() and folder.name != "report"
    }
    return {
        "stages": stages,
        "attribution": attribution["throughput"],
        "peak_memory_bytes": attribution["peak_memory_bytes"],
    }
