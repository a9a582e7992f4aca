"""``biasdiff mitigate``: take the effect of the selected examples out of the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from biasdiff.config import Config
from biasdiff.data.encoding import Encoding
from biasdiff.data.records import TrainExample, load_train_set
from biasdiff.errors import ConfigError, DataError, nearest
from biasdiff.mitigation.npo import NpoSettings, unlearn
from biasdiff.mitigation.retrain import retrain
from biasdiff.models.loading import resolve_model
from biasdiff.models.lora import load_adapter, save_adapter
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
from biasdiff.pipeline.warmup import LOG_FILE, lora_settings, training_settings
from biasdiff.training import processes
from biasdiff.training.fine_tuning import RESUME_FOLDER
from biasdiff.training.warmup import CHECKPOINTS

Log = list[dict[str, float]]


def mitigate(
    model: str,
    adapter: str | Path,
    train: str | Path,
    selection: str | Path,
    out: str | Path,
    *,
    method: str = "retrain",
    config: Config | None = None,
    force: bool = False,
) -> Path:
    """Remove the effect of the selected examples; write an adapter that loads with PEFT.

    Args:
        model: Base model: folder, hub id, .gguf file or ``smollm2-135m``.
        adapter: The biased model's adapter or warm-up folder.
        train: The train set it was trained on.
        selection: ``selection.parquet`` of `select`.
        out: Artifact folder.
        method: ``retrain`` or ``npo``.
        config: Sections ``model``, ``data``, ``lora``, ``warmup`` and ``mitigation`` are used.
        force: Replace what was made from other settings.

    Returns:
        The folder ``out``.

    Raises:
        ConfigError: If the method is unknown.
        DataError: If the selection is of another train set, or leaves nothing to forget or retain.
    """
    config = config or Config()
    plan = plan_mitigate(model, adapter, train, selection, out, method=method, config=config)
    return plan.make(force=force)


def plan_mitigate(
    model: str,
    adapter: str | Path,
    train: str | Path,
    selection: str | Path,
    out: str | Path,
    *,
    method: str,
    config: Config,
) -> Artifact:
    """Describe the mitigation without running it."""
    check_method(method)
    source, biased = resolve_model(model), find_adapter(adapter)
    settings = {
        "method": method,
        "model": model_settings(config),
        "text_column": config.data.text_column,
        "strict": config.data.strict,
        "seed": config.seed,
    }
    if method == "npo":
        settings["npo"] = config.mitigation.npo.model_dump(mode="json")
    else:
        settings["lora"] = config.lora.model_dump(mode="json")
        settings["training"] = config.warmup.model_dump(mode="json")
    inputs = {
        "model": source.fingerprint,
        "adapter": folder_fingerprint(biased),
        "train": file_fingerprint(train),
        "selection": file_fingerprint(selection),
    }

    def build(folder: Path) -> None:
        examples = load_train_set(train, text_column=config.data.text_column)
        selected = selected_rows(selection, examples)
        base = load_base(source, config.model)
        encodings = base.encode(examples, strict=config.data.strict)
        debiased, log = METHODS[method](
            base, biased, encodings, [e.id for e in examples], selected, config, folder
        )
        if not processes.is_first():
            return
        save_adapter(debiased, folder)
        write_json(
            folder / LOG_FILE,
            {"method": method, "forgotten": sum(selected), "epochs": log},
        )
        for leftover in (CHECKPOINTS, RESUME_FOLDER):
            shutil.rmtree(folder / leftover, ignore_errors=True)

    return Artifact(f"mitigate ({method})", Path(out), settings, inputs, build, shared=True)


def check_method(method: str) -> None:
    """Refuse an unknown method, naming the nearest.

    Raises:
        ConfigError: If it is not in `METHODS`.
    """
    if method not in METHODS:
        raise ConfigError(
            f"unknown method {method!r}{nearest(method, METHODS)}",
            expected=f"one of {', '.join(METHODS)}",
            remedy="choose one of these",
        )


def selected_rows(selection: str | Path, examples: Sequence[TrainExample]) -> list[bool]:
    """Read which examples are selected, in the order of the train set.

    Raises:
        DataError: If the file cannot be read, lacks a column or holds other ids.
    """
    try:
        table = pd.read_parquet(selection, columns=["id", "selected"])
    except (OSError, ValueError) as error:
        raise DataError(
            f"{selection} cannot be read ({(str(error).splitlines() or [''])[0]})",
            expected="a Parquet file with 'id' and 'selected', as 'biasdiff select' writes",
            remedy="check the path",
        ) from error
    chosen = dict(zip(table["id"].astype(str), table["selected"].astype(bool), strict=True))
    unknown = [e.id for e in examples if e.id not in chosen]
    if unknown or len(chosen) != len(examples):
        raise DataError(
            f"{selection} holds {len(chosen)} ids, {len(unknown)} of the train set's "
            f"{len(examples)} are not among them",
            expected="a selection of this train set",
            remedy="run 'biasdiff attribute' and 'biasdiff select' on this train set",
        )
    return [bool(chosen[e.id]) for e in examples]


def _retrain(
    base: BaseModel,
    biased: Path,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    selected: Sequence[bool],
    config: Config,
    folder: Path,
) -> tuple[Any, Log]:
    kept = [i for i, forgotten in enumerate(selected) if not forgotten]
    return retrain(
        base.model,
        [encodings[i] for i in kept],
        [names[i] for i in kept],
        lora_settings(config.lora),
        training_settings(config.warmup, seed=config.seed),
        folder,
    )


def _npo(
    base: BaseModel,
    biased: Path,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    selected: Sequence[bool],
    config: Config,
    folder: Path,
) -> tuple[Any, Log]:
    model = load_adapter(base.model, biased, trainable=True)
    section = config.mitigation.npo
    log = unlearn(
        model,
        [e for e, forgotten in zip(encodings, selected, strict=True) if forgotten],
        [e for e, forgotten in zip(encodings, selected, strict=True) if not forgotten],
        [n for n, forgotten in zip(names, selected, strict=True) if forgotten],
        training_settings(section, seed=config.seed),
        NpoSettings(beta=section.beta, retain_weight=section.retain_weight),
        folder,
        max_tokens=config.model.max_tokens,
    )
    return model, log


METHODS: dict[str, Callable[..., tuple[Any, Log]]] = {"retrain": _retrain, "npo": _npo}
