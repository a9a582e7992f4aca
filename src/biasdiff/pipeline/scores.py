"""Scores of every estimator of an attribution, computed and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from biasdiff.attribution.estimator import DirectEstimator, Estimator, GradientEstimator
from biasdiff.attribution.explanation import explain_example
from biasdiff.attribution.features.building import store_sums
from biasdiff.attribution.features.store import FeatureStore
from biasdiff.attribution.gradient_pass import (
    Chosen,
    comparisons_of,
    gradient_sums,
    measured_in,
)
from biasdiff.attribution.material import Material
from biasdiff.attribution.parameters import chosen_parameters
from biasdiff.attribution.scores import Scores, typed_scores
from biasdiff.attribution.scoring import Comparison, Pass
from biasdiff.attribution.selection import select as select_examples
from biasdiff.attribution.train_sides import NEEDS_ADAM
from biasdiff.config import AttributionConfig, Config
from biasdiff.data.probe import ProbePair, require_twins
from biasdiff.data.records import TrainExample
from biasdiff.errors import ConfigError
from biasdiff.models.lora import load_adapter
from biasdiff.pipeline.artifacts import write_json
from biasdiff.pipeline.base_model import BaseModel
from biasdiff.pipeline.estimators import train_side_of
from biasdiff.pipeline.features import projection_of
from biasdiff.pipeline.probe_set import encode_probes
from biasdiff.progress import say
from biasdiff.training import processes
from biasdiff.training.checkpoints import load_adam_state, load_info

SCORES_FILE = "scores.parquet"
EXPLANATIONS_FILE = "explanations.json"


def scores_file(estimator: str, main: str) -> str:
    """Return the file name of an estimator's scores; the selecting one's has no suffix."""
    return SCORES_FILE if estimator == main else f"scores-{estimator}.parquet"


def write_all_scores(
    base: BaseModel,
    places: Sequence[Path],
    examples: Sequence[TrainExample],
    pairs: Sequence[ProbePair],
    estimators: Mapping[str, Estimator],
    config: Config,
    folder: Path,
    store: Callable[[], FeatureStore] | None,
) -> dict[str, float]:
    """Compute and write the scores of every estimator; return the timing of the gradient pass.

    Args:
        base: The base model.
        places: Checkpoints to score at.
        examples: The train set.
        pairs: The probe set.
        estimators: By name.
        config: Settings.
        folder: Where scores and what an interrupted pass goes on from are written.
        store: Opens the train features to score from; None to compute them.
    """
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
            train_side_of(name, estimator, section),
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
    store: Callable[[], FeatureStore] | None,
) -> dict[str, float]:
    """Score at every checkpoint; its weight is its epoch's mean learning rate (Eq. 5)."""
    section = config.attribution
    opened = None if store is None else store()  # before the probe set is gone through
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
        if opened is None:
            sums, taken = gradient_sums(at, comparisons, how, work)
            timing = {key: timing[key] + taken[key] for key in timing}
        else:
            sums = store_sums(opened, comparisons, projection_of(config, model))
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
