"""``biasdiff attribute``: an influence score for every train example."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from biasdiff.attribution.estimator import DirectEstimator, Estimator, GradientEstimator
from biasdiff.attribution.explanation import explain_example
from biasdiff.attribution.features.building import store_sums
from biasdiff.attribution.gradient_pass import (
    Chosen,
    comparisons_of,
    gradient_sums,
    measured_in,
)
from biasdiff.attribution.material import Material
from biasdiff.attribution.parameters import LORA, chosen_parameters
from biasdiff.attribution.registry import ESTIMATORS
from biasdiff.attribution.scores import Scores, typed_scores
from biasdiff.attribution.scoring import Comparison, Pass
from biasdiff.attribution.selection import select as select_examples
from biasdiff.attribution.train_sides import NEEDS_ADAM, TRAIN_SIDES
from biasdiff.config import SHIPPED, AttributionConfig, Config
from biasdiff.data.probe import ProbePair, require_twins
from biasdiff.data.records import TrainExample, load_train_set
from biasdiff.data.shipped_sets import PAIRS_FILE
from biasdiff.errors import ConfigError, nearest
from biasdiff.models.loading import resolve_model
from biasdiff.models.lora import load_adapter
from biasdiff.pipeline.artifacts import (
    Artifact,
    file_fingerprint,
    folder_fingerprint,
    read_json,
    write_json,
)
from biasdiff.pipeline.base_model import (
    BaseModel,
    find_adapter,
    find_checkpoints,
    load_base,
    model_settings,
)
from biasdiff.pipeline.features import features_made_from, open_features, projection_of
from biasdiff.pipeline.probe_set import encode_probes, load_pairs
from biasdiff.pipeline.versions import library_versions, peak_memory_bytes
from biasdiff.pipeline.warmup import plan_warmup, warmup_settings
from biasdiff.progress import say
from biasdiff.training import processes
from biasdiff.training.checkpoints import load_adam_state, load_info

SCORES_FILE = "scores.parquet"
EXPLANATIONS_FILE = "explanations.json"
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
    store: Store | None = None
    if features is not None:
        _require_fit_for_store(adapter, estimators, config)
        place = _checkpoints(str(adapter), section)[0]
        settings["features"] = features_made_from(model, train, place, config)
        store = Store(features, model, train, place)

    def build(folder: Path) -> None:
        examples = load_train_set(train, text_column=config.data.text_column)
        pairs = load_pairs(probe)
        source_of_adapter: str | Path | None = adapter
        if source_of_adapter is None:
            warm = plan_warmup(model, train, folder / WARMUP_FOLDER, config=config)
            source_of_adapter = warm.make()
        places = _checkpoints(source_of_adapter, section)
        base = load_base(source, config.model)
        timing = _score(base, places, examples, pairs, estimators, config, folder, store)
        if processes.is_first():
            _write_record(folder, settings, section.estimator, examples, pairs, timing)
            shutil.rmtree(folder / "chunks", ignore_errors=True)

    return Artifact("attribute", Path(out), settings, inputs, build, shared=True)


@dataclass(frozen=True)
class Store:
    """Where stored train features are, and what they must have been made from."""

    folder: str | Path
    model: str
    train: str | Path
    adapter: Path

    def sums(
        self, comparisons: Mapping[str, Comparison], model: Any, config: Config
    ) -> dict[str, torch.Tensor]:
        """Return what `score_train_set` would, up to the projection's error."""
        opened = open_features(self.folder, self.model, self.train, self.adapter, config)
        projection = projection_of(config, model)
        return {
            name: store_sums(opened, c.probe, projection, cosine=c.normalize != "none")
            for name, c in comparisons.items()
        }


def _require_fit_for_store(
    adapter: str | Path | None, estimators: Mapping[str, Estimator], config: Config
) -> None:
    """Refuse what stored features cannot give."""
    section, side = config.attribution, config.features.train_side
    problems = {
        "no adapter is named": adapter is None,
        "checkpoints is 'all'": section.checkpoints == "all",
        f"group is {section.group}": section.group > 1,
        f"parameters is {section.parameters!r}": section.parameters != LORA,
    }
    for name, estimator in estimators.items():
        if isinstance(estimator, GradientEstimator):
            own = _train_side(name, estimator, section)
            problems[f"{name} has the train side {own!r}, the features {side!r}"] = own != side
    found = [problem for problem, there in problems.items() if there]
    if found:
        raise ConfigError(
            f"--features is given, and {found[0]}",
            expected="estimators of the stored train side, at the one adapter they were made at",
            remedy="set features.train_side and build such a store, or leave --features out",
        )


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


def scores_file(estimator: str, main: str) -> str:
    """Return the file name of an estimator's scores; the selecting one's has no suffix."""
    return SCORES_FILE if estimator == main else f"scores-{estimator}.parquet"


def chosen_estimators(config: Config) -> dict[str, Estimator]:
    """Return the estimators to compute, the selecting one first.

    Raises:
        ConfigError: If a name, a train side or an option is unknown, or settings contradict each
            other.
    """
    section = config.attribution
    chosen: dict[str, Estimator] = {}
    for name in dict.fromkeys([section.estimator, *section.also]):
        _known(name, ESTIMATORS, "estimator")
        chosen[name] = ESTIMATORS[name]
        chosen[name].check(section.options.get(name, {}))
    for name in section.options:
        _known(name, ESTIMATORS, "estimator")
    if section.train_side is not None:
        _known(section.train_side, TRAIN_SIDES, "train side")
    if section.checkpoint is not None and section.checkpoints == "all":
        raise ConfigError(
            f"checkpoint is {section.checkpoint} and checkpoints is 'all'",
            expected="one of them",
            remedy="drop one of the two",
        )
    if section.parameters != LORA:
        _require_no_adam(section, chosen)
    return chosen


def _require_no_adam(section: AttributionConfig, chosen: Mapping[str, Estimator]) -> None:
    """Refuse what LoRA's Adam moments, or its linear maps, are needed for."""
    for name, estimator in chosen.items():
        if not isinstance(estimator, GradientEstimator):
            continue
        side = _train_side(name, estimator, section)
        if side in NEEDS_ADAM or estimator.curvature is not None:
            raise ConfigError(
                f"parameters is {section.parameters!r}, and {name} needs Adam moments or curvature "
                "of them, which a checkpoint has of its adapter only",
                expected="an estimator of plain gradients",
                remedy="use sgd_cos, sgd_dot, contrast or contrast_classifier",
            )


def _train_side(name: str, estimator: GradientEstimator, section: AttributionConfig) -> str:
    chosen = section.train_side if name == section.estimator else None
    return estimator.train_side if chosen is None else chosen


def _known(name: str, choices: Mapping[str, Any], kind: str) -> None:
    if name not in choices:
        raise ConfigError(
            f"unknown {kind} {name!r}{nearest(name, choices)}",
            expected=f"one of {', '.join(choices)}",
            remedy="choose one of these",
        )


def _checkpoints(adapter: str | Path, section: AttributionConfig) -> list[Path]:
    if section.checkpoints == "all":
        return find_checkpoints(adapter)
    return [find_adapter(adapter, epoch=section.checkpoint)]


def _score(
    base: BaseModel,
    places: Sequence[Path],
    examples: Sequence[TrainExample],
    pairs: Sequence[ProbePair],
    estimators: Mapping[str, Estimator],
    config: Config,
    folder: Path,
    store: Store | None,
) -> dict[str, float]:
    """Compute and write the scores of every estimator; return the timing of the gradient pass."""
    section = config.attribution
    twins = [name for name, estimator in estimators.items() if estimator.needs_twins]
    if twins:
        require_twins(pairs, purpose=f"the estimator '{twins[0]}'")
    material = Material(
        model=None,
        tokenizer=base.tokenizer,
        max_length=base.max_length,
        max_tokens=config.model.max_tokens,
        examples=examples,
        encodings=base.encode(examples, strict=config.data.strict),
        pairs=pairs,
        probes=encode_probes(base, pairs, twins=bool(twins)),
        aggregate=section.aggregate,
        seed=config.seed,
    )
    chosen = {
        name: Chosen(
            estimator,
            _train_side(name, estimator, section),
            section.normalize or estimator.normalize
            if name == section.estimator
            else estimator.normalize,
            section.options.get(name, {}),
        )
        for name, estimator in estimators.items()
        if isinstance(estimator, GradientEstimator)
    }
    timing = {"seconds": 0.0, "examples": 0.0, "tokens": 0.0}
    if chosen:
        timing = _score_by_gradients(base, places, material, chosen, config, folder, store)
    direct = {n: e for n, e in estimators.items() if isinstance(e, DirectEstimator)}
    if direct and processes.is_first():
        model = load_adapter(base.model, places[-1])
        for name, estimator in direct.items():
            file = folder / scores_file(name, section.estimator)
            if file.exists():
                continue
            say(f"  {name}")
            work = folder / "chunks" / name
            work.mkdir(parents=True, exist_ok=True)
            own = replace(material, model=model, options=section.options.get(name, {}), work=work)
            found = estimator.score(own)
            if found.notes:
                write_json(folder / f"notes-{name}.json", found.notes)
            _write_scores(file, examples, found, config)
        model.unload()
    processes.wait_for_all()
    return timing


def _score_by_gradients(
    base: BaseModel,
    places: Sequence[Path],
    material: Material,
    chosen: Mapping[str, Chosen],
    config: Config,
    folder: Path,
    store: Store | None,
) -> dict[str, float]:
    """Score at every checkpoint; its weight is its epoch's mean learning rate (Eq. 5)."""
    section = config.attribution
    weights = [1.0]
    if len(places) > 1:
        rates = [load_info(place).mean_learning_rate for place in places]
        weights = [rate / sum(rates) for rate in rates]
    timing = {"seconds": 0.0, "examples": 0.0, "tokens": 0.0}
    totals: dict[str, Any] = {}
    comparisons: dict[str, Comparison] = {}
    for place, weight in zip(places, weights, strict=True):
        model = load_adapter(base.model, place)
        needs_adam = any(one.train_side in NEEDS_ADAM for one in chosen.values())
        adam = load_adam_state(place, model) if needs_adam else None
        at = replace(material, model=model)
        how = Pass(
            max_tokens=config.model.max_tokens,
            parameters=chosen_parameters(model, section.parameters),
            group=section.group,
            average=section.loss == "mean",
            seed=config.seed,
        )
        work = folder / "chunks" / place.name if len(places) > 1 else folder / "chunks"
        work.mkdir(parents=True, exist_ok=True)
        comparisons = comparisons_of(at, chosen, how, adam)
        if store is None:
            sums, taken = gradient_sums(at, comparisons, how, work)
        else:
            sums, taken = store.sums(comparisons, model, config), dict.fromkeys(timing, 0.0)
        timing = {key: timing[key] + taken[key] for key in timing}
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + weight * value.double().numpy()
        if section.explain and place == places[-1] and processes.is_first():
            _write_explanations(folder, at, comparisons, how, totals, section)
        model.unload()
    if processes.is_first():
        for name, value in totals.items():
            probe = comparisons[name].probe
            scores = typed_scores(
                value, probe.counts, probe.bias_types, aggregate=section.aggregate
            )
            _write_scores(
                folder / scores_file(name, section.estimator), material.examples, scores, config
            )
    return timing


def _write_explanations(
    folder: Path,
    material: Material,
    comparisons: Mapping[str, Comparison],
    how: Pass,
    totals: Mapping[str, Any],
    section: AttributionConfig,
) -> None:
    """Take the highest examples of the selecting estimator apart, at the last checkpoint."""
    name = section.estimator
    if name not in comparisons:
        raise ConfigError(
            f"explain is {section.explain}, and {name} has no gradients to share out",
            expected="a gradient estimator",
            remedy="set attribution.explain to 0, or use another estimator",
        )
    order = (-totals[name].sum(1)).argsort(kind="stable")[: section.explain]
    records = []
    for row in order.tolist():
        found = explain_example(
            material.model,
            material.encodings[row],
            comparisons[name],
            measured_in(material, how),
            max_tokens=how.max_tokens,
            average=how.average,
        )
        records.append(
            {
                "id": material.examples[row].id,
                "row": row,
                "score": found.score,
                "momentum": found.momentum,
                "tokens": [material.tokenizer.decode([token]) for token in found.tokens],
                "contributions": found.contributions,
            }
        )
    write_json(folder / EXPLANATIONS_FILE, {"estimator": name, "examples": records})


def _write_scores(
    file: Path, examples: Sequence[TrainExample], scores: Scores, config: Config
) -> None:
    table = _scores_table(examples, scores)
    table["selected"] = select_examples(table, **config.selection.model_dump(), seed=config.seed)[
        "selected"
    ]
    table.to_parquet(file.with_suffix(".tmp"))
    file.with_suffix(".tmp").rename(file)


def _scores_table(examples: Sequence[TrainExample], scores: Scores) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "id": [example.id for example in examples],
        "row": [example.row for example in examples],
        "score": scores.overall,
    }
    for k, bias_type in enumerate(scores.bias_types):
        columns[f"score_{bias_type}"] = scores.by_type[:, k]
    return pd.DataFrame(columns)
