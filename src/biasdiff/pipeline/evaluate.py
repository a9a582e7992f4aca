"""``biasdiff evaluate``: bias and capability of a causal language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from biasdiff.config import SHIPPED, Config
from biasdiff.data.probe import ProbePair, load_probe_pairs
from biasdiff.data.records import load_train_set
from biasdiff.evaluation.crows_pairs import crows_pairs_file, load_crows_pairs
from biasdiff.evaluation.perplexity import perplexity_metric, score_texts
from biasdiff.evaluation.stereotype_preference import SCORING, preference_metrics, score_pairs
from biasdiff.models.loading import resolve_model
from biasdiff.models.lora import load_adapter
from biasdiff.pipeline.artifacts import (
    Artifact,
    file_fingerprint,
    folder_fingerprint,
    write_json,
)
from biasdiff.pipeline.base_model import (
    BaseModel,
    find_adapter,
    load_base,
    model_settings,
)
from biasdiff.pipeline.mixture import mixture_of
from biasdiff.pipeline.versions import library_versions

EVALUATION_FILE = "evaluation.json"
PREFERENCE, CROWS_PAIRS, PERPLEXITY = "stereotype_preference", "crows_pairs", "perplexity"


def evaluate(
    model: str,
    *,
    adapter: str | Path | None = None,
    pairs: str | Path = SHIPPED,
    texts: str | Path = SHIPPED,
    out: str | Path | None = None,
    config: Config | None = None,
) -> dict[str, Any]:
    """Measure stereotype preference and perplexity of a model.

    Args:
        model: Folder, hub id, .gguf file or ``smollm2-135m``.
        adapter: Adapter or warm-up folder to put on it.
        pairs: Evaluation pairs in CrowS-Pairs columns; by default the package's evaluation draw.
        texts: Held-out texts; by default the package's held-out facts.
        out: JSON file to write; the per-example scores go beside it as Parquet.
        config: Sections ``model``, ``data`` and ``evaluate`` are used.

    Returns:
        The record that is written: ``metrics`` by benchmark, each with value, standard error or
        95 % interval, n and direction; and the ``settings``.
    """
    config = config or Config()
    source = resolve_model(model)
    base = load_base(source, config.model)
    if adapter is not None:
        adapter = find_adapter(adapter)
        base = _adapted(base, adapter)
    record, frames = _measure(base, pairs, texts, config)
    record = {"model": model, "adapter": None if adapter is None else str(adapter)} | record
    if out is not None:
        write_evaluation(Path(out), record, frames)
    return record


def plan_evaluate(
    model: str,
    adapter: Path | None,
    pairs: str | Path,
    texts: str | Path,
    out: str | Path,
    *,
    name: str,
    config: Config,
) -> Artifact:
    """Describe the evaluation of one model of a run without running it."""
    source = resolve_model(model)
    settings = {
        "model": model_settings(config),
        "text_column": config.data.text_column,
        "evaluate": config.evaluate.model_dump(mode="json"),
    }
    inputs = {
        "model": source.fingerprint,
        "pairs": file_fingerprint(pairs),
        "texts": file_fingerprint(texts),
    }
    if adapter is not None:
        inputs["adapter"] = folder_fingerprint(adapter)
    if config.evaluate.crows_pairs:
        inputs["crows_pairs"] = file_fingerprint(crows_pairs_file())

    def build(folder: Path) -> None:
        base = load_base(source, config.model)
        if adapter is not None:
            base = _adapted(base, adapter)
        record, frames = _measure(base, pairs, texts, config)
        write_evaluation(folder / EVALUATION_FILE, {"model": name} | record, frames)

    return Artifact(f"evaluate ({name})", Path(out), settings, inputs, build)


def write_evaluation(
    path: Path, record: dict[str, Any], frames: Mapping[str, pd.DataFrame]
) -> None:
    """Write the record as JSON and each benchmark's per-example scores beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame.to_parquet(scores_path(path, name))
    write_json(path, record)


def scores_path(evaluation: Path, benchmark: str) -> Path:
    """Return where the per-example scores of a benchmark lie, beside the evaluation's JSON."""
    return evaluation.with_name(f"{evaluation.stem}.{benchmark}.parquet")


def _adapted(base: BaseModel, adapter: Path) -> BaseModel:
    return BaseModel(load_adapter(base.model, adapter), base.tokenizer, base.max_length)


def _measure(
    base: BaseModel, pairs: str | Path, texts: str | Path, config: Config
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    budget = config.model.max_tokens
    sets: dict[str, list[ProbePair]] = {PREFERENCE: _pairs(pairs, config)}
    if config.evaluate.crows_pairs:
        sets[CROWS_PAIRS] = load_crows_pairs()
    held_out = _texts(texts, config)
    frames = {
        name: score_pairs(
            base.model,
            base.tokenizer,
            chosen,
            max_tokens=budget,
            max_length=base.max_length,
            name=name,
        )
        for name, chosen in sets.items()
    }
    metrics = {name: preference_metrics(frame) for name, frame in frames.items()}
    frames[PERPLEXITY] = score_texts(
        base.model, base.tokenizer, held_out, max_tokens=budget, max_length=base.max_length
    )
    metrics[PERPLEXITY] = {"perplexity": perplexity_metric(frames[PERPLEXITY])}
    record = {
        "metrics": {
            benchmark: {name: metric.to_json() for name, metric in values.items()}
            for benchmark, values in metrics.items()
        },
        "settings": {
            "scoring": SCORING,
            "pairs": str(pairs),
            "texts": str(texts),
            "model": model_settings(config),
            "evaluate": config.evaluate.model_dump(mode="json"),
        },
        "versions": library_versions(),
    }
    return record, frames


def _pairs(pairs: str | Path, config: Config) -> list[ProbePair]:
    if str(pairs) == SHIPPED:
        return mixture_of(config).pairs
    return load_probe_pairs(pairs)


def _texts(texts: str | Path, config: Config) -> list[str]:
    if str(texts) == SHIPPED:
        return [fact.text for fact in mixture_of(config).held_out]
    return [e.shown() for e in load_train_set(texts, text_column=config.data.text_column)]
