"""``biasdiff attribute``: an influence score for every train example."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from biasdiff.attribution.baselines import BASELINES
from biasdiff.attribution.estimator import Estimator
from biasdiff.attribution.probe_directions import EncodedProbes, probe_directions
from biasdiff.attribution.registry import ESTIMATORS
from biasdiff.attribution.scoring import Comparison, Scores, score_train_set
from biasdiff.attribution.selection import select as select_examples
from biasdiff.attribution.train_sides import NEEDS_ADAM, TRAIN_SIDES
from biasdiff.config import SHIPPED, Config
from biasdiff.data.draws import shipped_draw
from biasdiff.data.encoding import encode_text, say_how_many_cut
from biasdiff.data.probe import ProbePair, load_probe_pairs, require_twins
from biasdiff.data.records import TrainExample, load_train_set
from biasdiff.data.shipped_sets import PAIRS_FILE
from biasdiff.errors import ConfigError, nearest
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
from biasdiff.pipeline.versions import library_versions, peak_memory_bytes
from biasdiff.pipeline.warmup import plan_warmup, warmup_settings
from biasdiff.progress import say
from biasdiff.training.checkpoints import load_adam_state

SCORES_FILE = "scores.parquet"
BASELINES_FILE = "baselines.parquet"
RECORD_FILE = "attribute.json"
WARMUP_FOLDER = "warmup"


def attribute(
    model: str,
    train: str | Path,
    probe: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
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
    plan = plan_attribute(model, train, probe, out, adapter=adapter, config=config)
    return plan.make(force=force)


def plan_attribute(
    model: str,
    train: str | Path,
    probe: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None,
    config: Config,
) -> Artifact:
    """Describe the attribution without running it."""
    estimators = chosen_estimators(config)
    for name in config.attribution.baselines:
        _known(name, BASELINES, "baseline")
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
        "estimators": {name: side for name, (_, side) in estimators.items()},
        "checkpoint": config.attribution.checkpoint,
        "baselines": list(config.attribution.baselines),
        "selection": config.selection.model_dump(mode="json"),
        "seed": config.seed,
    }
    if adapter is not None:
        adapter = find_adapter(adapter, epoch=config.attribution.checkpoint)
        inputs["adapter"] = folder_fingerprint(adapter)
    else:
        settings["warmup"] = warmup_settings(config)

    def build(folder: Path) -> None:
        examples = load_train_set(train, text_column=config.data.text_column)
        pairs = shipped_draw("reference") if probe == SHIPPED else load_probe_pairs(probe)
        checkpoint = adapter
        if checkpoint is None:
            warm = plan_warmup(model, train, folder / WARMUP_FOLDER, config=config)
            checkpoint = find_adapter(warm.make(), epoch=config.attribution.checkpoint)
        base = load_base(source, config.model)
        scores, timing = _score(base, Path(checkpoint), examples, pairs, estimators, config, folder)
        main = config.attribution.estimator
        for name, values in scores.items():
            table = _scores_table(examples, values)
            table["selected"] = select_examples(
                table, **config.selection.model_dump(), seed=config.seed
            )["selected"]
            table.to_parquet(folder / scores_file(name, main))
        _write_baselines(examples, pairs, config, folder)
        seconds = timing["seconds"]
        record = {
            "settings": settings,
            "estimator": main,
            "formula": ESTIMATORS[main].formula,
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
        shutil.rmtree(folder / "chunks", ignore_errors=True)

    return Artifact("attribute", Path(out), settings, inputs, build)


def scores_file(estimator: str, main: str) -> str:
    """Return the file name of an estimator's scores; the selecting one's has no suffix."""
    return SCORES_FILE if estimator == main else f"scores-{estimator}.parquet"


def chosen_estimators(config: Config) -> dict[str, tuple[Estimator, str]]:
    """Return the estimators to compute with their train sides, the selecting one first.

    Raises:
        ConfigError: If a name is unknown.
    """
    section = config.attribution
    chosen = {}
    for name in dict.fromkeys([section.estimator, *section.also]):
        _known(name, ESTIMATORS, "estimator")
        side = ESTIMATORS[name].train_side
        if name == section.estimator and section.train_side is not None:
            side = section.train_side
            _known(side, TRAIN_SIDES, "train side")
        chosen[name] = (ESTIMATORS[name], side)
    return chosen


def _known(name: str, choices: dict[str, Any], kind: str) -> None:
    if name not in choices:
        raise ConfigError(
            f"unknown {kind} {name!r}{nearest(name, choices)}",
            expected=f"one of {', '.join(choices)}",
            remedy="choose one of these",
        )


def _score(
    base: BaseModel,
    checkpoint: Path,
    examples: Sequence[TrainExample],
    pairs: Sequence[ProbePair],
    estimators: dict[str, tuple[Estimator, str]],
    config: Config,
    folder: Path,
) -> tuple[dict[str, Scores], dict[str, float]]:
    model = load_adapter(base.model, checkpoint)
    sides = {side for _, side in estimators.values()}
    adam = load_adam_state(checkpoint, model) if sides & NEEDS_ADAM else None
    train_sides = {side: TRAIN_SIDES[side](adam) for side in sides}
    kinds = {estimator.probe for estimator, _ in estimators.values()}
    if "contrast" in kinds:
        require_twins(pairs, purpose="the estimator 'contrast'")
    directions = probe_directions(
        model,
        _encode_probes(base, pairs, twins="contrast" in kinds),
        kinds={str(kind) for kind in kinds},
        max_tokens=config.model.max_tokens,
    )
    chunks = folder / "chunks"
    chunks.mkdir(exist_ok=True)
    return score_train_set(
        model,
        base.encode(examples, strict=config.data.strict),
        [example.id for example in examples],
        {
            name: Comparison(train_sides[side], directions[estimator.probe])
            for name, (estimator, side) in estimators.items()
        },
        max_tokens=config.model.max_tokens,
        work=chunks,
    )


def _encode_probes(base: BaseModel, pairs: Sequence[ProbePair], *, twins: bool) -> EncodedProbes:
    more = [encode_text(base.tokenizer, p.sent_more) for p in pairs]
    less = [encode_text(base.tokenizer, p.sent_less) for p in pairs] if twins else []
    say_how_many_cut([*more, *less], base.max_length)
    return EncodedProbes(
        more=[encoding.cut(base.max_length) for encoding in more],
        less=[encoding.cut(base.max_length) for encoding in less],
        bias_types=[pair.bias_type for pair in pairs],
        names=[f"probe row {pair.row}" for pair in pairs],
    )


def _scores_table(examples: Sequence[TrainExample], scores: Scores) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "id": [example.id for example in examples],
        "row": [example.row for example in examples],
        "score": scores.overall.numpy().astype("float64"),
    }
    for k, bias_type in enumerate(scores.bias_types):
        columns[f"score_{bias_type}"] = scores.by_type[:, k].numpy().astype("float64")
    return pd.DataFrame(columns)


def _write_baselines(
    examples: Sequence[TrainExample], pairs: Sequence[ProbePair], config: Config, folder: Path
) -> None:
    names = config.attribution.baselines
    if not names:
        return
    say(f"  baselines: {', '.join(names)}")
    texts = [example.shown() for example in examples]
    probes = [pair.sent_more for pair in pairs]
    table = {name: BASELINES[name](texts, probes, config.seed) for name in names}
    ids = {"id": [example.id for example in examples]}
    pd.DataFrame(ids | table).to_parquet(folder / BASELINES_FILE)
