"""``biasdiff attribute``: an influence score for every train example."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from biasdiff.attribution.features.store import FeatureStore
from biasdiff.attribution.registry import ESTIMATORS
from biasdiff.config import SHIPPED, AttributionConfig, Config
from biasdiff.data.probe import ProbePair
from biasdiff.data.records import TrainExample, load_train_set
from biasdiff.data.shipped_sets import PAIRS_FILE
from biasdiff.models.loading import resolve_model
from biasdiff.pipeline.artifacts import (
    Artifact,
    file_fingerprint,
    folder_fingerprint,
    read_json,
    write_json,
)
from biasdiff.pipeline.base_model import (
    find_adapter,
    find_checkpoints,
    load_base,
    model_settings,
)
from biasdiff.pipeline.estimators import chosen_estimators, require_fit_for_store
from biasdiff.pipeline.features import features_made_from, open_features
from biasdiff.pipeline.probe_set import load_pairs
from biasdiff.pipeline.scores import write_all_scores
from biasdiff.pipeline.versions import library_versions, peak_memory_bytes
from biasdiff.pipeline.warmup import plan_warmup, warmup_settings
from biasdiff.training import processes

RECORD_FILE = "attribute.json"
WARMUP_FOLDER = "warmup"


def attribute(
    model: str,
    train: str | Path,
    probe: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    features: str | Path | None = None,
    config: Config | None = None,
    force: bool = False,
) -> Path:
    """Score every train example's influence towards the probe's stereotypes.

    Args:
        model: Folder, hub id, .gguf file or ``smollm2-135m``.
        train: Train data file or dataset id.
        probe: Probe pairs, a CSV in CrowS-Pairs columns, or ``shipped`` for the reference draw.
        out: Artifact folder: ``scores.parquet`` (``id``, ``row``, ``score``, ``score_<bias_type>``,
            ``selected``), ``attribute.json``, and ``scores-<estimator>.parquet`` of the others.
        adapter: Adapter or warm-up folder; without one, an adapter is warmed up first.
        features: Store that `build_features` wrote at this adapter: the train set is scored from
            it, up to its projection's error, and does not go through the model.
        config: Sections ``model``, ``data``, ``attribution`` and ``selection`` are used, and those
            of the warm-up where one is needed.
        force: Replace what was made from other settings.

    Returns:
        The folder ``out``.

    Raises:
        ConfigError: If an estimator, train side or baseline is unknown.
        ModelError: If an estimator needs Adam moments that the adapter does not carry.
    """
    config = config or Config()
    plan = plan_attribute(
        model, train, probe, out, adapter=adapter, features=features, config=config
    )
    return plan.make(force=force)


def plan_attribute(
    model: str,
    train: str | Path,
    probe: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None,
    features: str | Path | None = None,
    config: Config,
) -> Artifact:
    """Describe the attribution without running it."""
    estimators = chosen_estimators(config)
    section = config.attribution
    source = resolve_model(model)
    inputs = {
        "model": source.fingerprint,
        "train": file_fingerprint(train),
        "probe": file_fingerprint(PAIRS_FILE if probe == SHIPPED else probe),
    }
    settings = {
        "model": model_settings(config),
        "text_column": config.data.text_column,
        "strict": config.data.strict,
        "attribution": section.model_dump(mode="json"),
        "selection": config.selection.model_dump(mode="json"),
        "seed": config.seed,
    }
    if adapter is not None:
        checkpoints = _checkpoints(adapter, section)
        for place in checkpoints:
            label = "adapter" if len(checkpoints) == 1 else f"adapter {place.name}"
            inputs[label] = folder_fingerprint(place)
    else:
        settings["warmup"] = warmup_settings(config)
    store: Callable[[], FeatureStore] | None = None
    if features is not None:
        require_fit_for_store(adapter, estimators, config)
        place = _checkpoints(str(adapter), section)[0]
        settings["features"] = features_made_from(model, train, place, config)
        store = partial(open_features, features, model, train, place, config)

    def build(folder: Path) -> None:
        examples = load_train_set(train, text_column=config.data.text_column)
        pairs = load_pairs(probe)
        source_of_adapter: str | Path | None = adapter
        if source_of_adapter is None:
            warm = plan_warmup(model, train, folder / WARMUP_FOLDER, config=config)
            source_of_adapter = warm.make()
        places = _checkpoints(source_of_adapter, section)
        base = load_base(source, config.model)
        timing = write_all_scores(base, places, examples, pairs, estimators, config, folder, store)
        if processes.is_first():
            _write_record(folder, settings, section.estimator, examples, pairs, timing)
            shutil.rmtree(folder / "chunks", ignore_errors=True)

    return Artifact("attribute", Path(out), settings, inputs, build, shared=True)


def _write_record(
    folder: Path,
    settings: Mapping[str, Any],
    main: str,
    examples: Sequence[TrainExample],
    pairs: Sequence[ProbePair],
    timing: Mapping[str, float],
) -> None:
    seconds = timing["seconds"]
    record = {
        "settings": settings,
        "estimator": main,
        "formula": ESTIMATORS[main].formula,
        "notes": {
            file.stem.removeprefix("notes-"): read_json(file)
            for file in sorted(folder.glob("notes-*.json"))
        },
        "examples": len(examples),
        "probe_pairs": len(pairs),
        "throughput": {
            "examples_per_second": timing["examples"] / seconds if seconds else None,
            "tokens_per_second": timing["tokens"] / seconds if seconds else None,
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": library_versions(),
    }
    write_json(folder / RECORD_FILE, record)


def _checkpoints(adapter: str | Path, section: AttributionConfig) -> list[Path]:
    if section.checkpoints == "all":
        return find_checkpoints(adapter)
    return [find_adapter(adapter, epoch=section.checkpoint)]
