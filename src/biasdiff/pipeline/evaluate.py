"""``biasdiff evaluate``: bias and capability of a causal language model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from biasdiff.config import SHIPPED, Config, EvaluateConfig
from biasdiff.data.probe import ProbePair, load_probe_pairs
from biasdiff.data.records import load_train_set
from biasdiff.data.shipped_mixture import held_out_facts
from biasdiff.data.sources.finding import another_version
from biasdiff.errors import DataError
from biasdiff.evaluation import evaluation_pairs, perplexity
from biasdiff.evaluation.benchmark import Benchmark, Inputs, Subject
from biasdiff.evaluation.registry import chosen_benchmarks, require_known
from biasdiff.evaluation.stereotype_preference import SCORING, require_start_token
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
from biasdiff.progress import say
from biasdiff.results import Metric
from biasdiff.training import processes

EVALUATION_FILE = "evaluation.json"
PREFERENCE, PERPLEXITY = evaluation_pairs.BENCHMARK.name, perplexity.PERPLEXITY.name


def evaluate(
    model: str,
    *,
    adapter: str | Path | None = None,
    pairs: str | Path = SHIPPED,
    texts: str | Path = SHIPPED,
    out: str | Path | None = None,
    config: Config | None = None,
) -> dict[str, Any]:
    """Run benchmarks on a model.

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
    for benchmark, files in available_benchmarks(config.evaluate):
        for name_of_file, file in files.items():
            inputs[f"{benchmark.name}: {name_of_file}"] = file_fingerprint(file)

    def build(folder: Path) -> None:
        base = load_base(source, config.model)
        if adapter is not None:
            base = _adapted(base, adapter)
        record, frames = _measure(base, pairs, texts, config)
        write_evaluation(folder / EVALUATION_FILE, {"model": name} | record, frames)

    return Artifact(f"evaluate ({name})", Path(out), settings, inputs, build, shared=True)


def available_benchmarks(
    settings: EvaluateConfig,
) -> list[tuple[Benchmark, Mapping[str, Path]]]:
    """Return the benchmarks that can be run, with their files, before any work is done.

    Of ``all`` and ``core`` those whose files cannot be had are left out, and that is said.

    Raises:
        ConfigError: If there is none of a name, or an option is unknown or out of range.
        DataError: If the files of one that is named cannot be had.
    """
    names = settings.benchmarks
    found = []
    require_known(settings.options)
    for benchmark in chosen_benchmarks(names):
        try:
            files = benchmark.files(settings.options.get(benchmark.name, {}))
            for path in files.values():
                if version := another_version(path):
                    say(f"  {benchmark.title}: another version of the file: {version}")
            found.append((benchmark, files))
        except DataError as error:
            if benchmark.name in names:
                raise
            say(f"  {benchmark.title} is left out: {error.found}")
    return found


def write_evaluation(
    path: Path, record: dict[str, Any], frames: Mapping[str, pd.DataFrame]
) -> None:
    """Write the record as JSON and each benchmark's per-example scores beside it."""
    if not processes.is_first():
        return
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
    chosen = [benchmark for benchmark, _ in available_benchmarks(config.evaluate)]
    subject = Subject(base.model, base.tokenizer, base.max_length, config.model.max_tokens)
    require_start_token(subject)
    inputs = _inputs(pairs, texts, config, [benchmark.name for benchmark in chosen])
    frames: dict[str, pd.DataFrame] = {}
    metrics: dict[str, dict[str, Metric]] = {}
    seconds: dict[str, float] = {}
    for benchmark in chosen:
        started = time.perf_counter()
        frames[benchmark.name] = benchmark.score(subject, inputs)
        metrics[benchmark.name] = benchmark.aggregate(frames[benchmark.name])
        seconds[benchmark.name] = round(time.perf_counter() - started, 1)
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
        "seconds": seconds,
        "versions": library_versions(),
    }
    return record, frames


def _inputs(pairs: str | Path, texts: str | Path, config: Config, names: Sequence[str]) -> Inputs:
    return Inputs(
        pairs=_pairs(pairs, config) if evaluation_pairs.BENCHMARK.name in names else (),
        texts=_texts(texts, config) if perplexity.PERPLEXITY.name in names else (),
        facts=held_out_facts(config.seed),
        limit=config.evaluate.limit,
        seed=config.seed,
        options=config.evaluate.options,
    )


def _pairs(pairs: str | Path, config: Config) -> list[ProbePair]:
    if str(pairs) == SHIPPED:
        return mixture_of(config).pairs
    return load_probe_pairs(pairs)


def _texts(texts: str | Path, config: Config) -> list[str]:
    if str(texts) == SHIPPED:
        return [fact.text for fact in mixture_of(config).held_out]
    return [e.shown() for e in load_train_set(texts, text_column=config.data.text_column)]
