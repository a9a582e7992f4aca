"""``biasdiff warmup``: fine-tune an adapter on the train set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from biasdiff.config import Config, LoraConfig, TrainingConfig
from biasdiff.data.records import load_train_set
from biasdiff.models.loading import resolve_model
from biasdiff.models.lora import LoraSettings, add_adapter
from biasdiff.pipeline.artifacts import Artifact, file_fingerprint, write_json
from biasdiff.pipeline.base_model import load_base, model_settings
from biasdiff.training import processes
from biasdiff.training.fine_tuning import TrainingSettings
from biasdiff.training.warmup import stratified_sample, warm_up

LOG_FILE = "training.json"


def warmup(
    model: str,
    train: str | Path,
    out: str | Path,
    *,
    config: Config | None = None,
    force: bool = False,
) -> Path:
    """Fine-tune a LoRA adapter on the train set, keeping adapter and Adam moments every epoch.

    Args:
        model: Folder, hub id, .gguf file or ``smollm2-135m``.
        train: Train data file or dataset id.
        out: Artifact folder; ``checkpoints/epoch-N`` under it load with PEFT.
        config: Sections ``model``, ``data``, ``lora`` and ``warmup`` and the seed are used.
        force: Replace what was made from other settings.

    Returns:
        The folder ``out``.
    """
    return plan_warmup(model, train, out, config=config or Config()).make(force=force)


def plan_warmup(model: str, train: str | Path, out: str | Path, *, config: Config) -> Artifact:
    """Describe the warm-up without running it."""
    source = resolve_model(model)

    def build(folder: Path) -> None:
        examples = load_train_set(train, text_column=config.data.text_column)
        if config.warmup.fraction < 1:
            rows = stratified_sample(examples, config.warmup.fraction, seed=config.seed)
            examples = [examples[row] for row in rows]
        base = load_base(source, config.model)
        encodings = base.encode(examples, strict=config.data.strict)
        adapted = add_adapter(base.model, lora_settings(config.lora), seed=config.seed)
        log = warm_up(
            adapted,
            encodings,
            [example.id for example in examples],
            training_settings(config.warmup, seed=config.seed),
            folder,
        )
        if processes.is_first():
            write_json(folder / LOG_FILE, {"examples": len(examples), "epochs": log})

    return Artifact(
        "warmup",
        Path(out),
        warmup_settings(config),
        {"model": source.fingerprint, "train": file_fingerprint(train)},
        build,
        shared=True,
    )


def warmup_settings(config: Config) -> dict[str, Any]:
    """Return all settings that a trained adapter depends on."""
    return {
        "model": model_settings(config),
        "text_column": config.data.text_column,
        "strict": config.data.strict,
        "lora": config.lora.model_dump(mode="json"),
        "warmup": config.warmup.model_dump(mode="json"),
        "seed": config.seed,
    }


def training_settings(section: TrainingConfig, *, seed: int) -> TrainingSettings:
    """Turn a section into the plain record that the training floor takes."""
    fields = {name: getattr(section, name) for name in TrainingConfig.model_fields}
    return TrainingSettings(**fields, seed=seed)


def lora_settings(section: LoraConfig) -> LoraSettings:
    """Turn a section into the plain record that the models floor takes."""
    return LoraSettings(**section.model_dump())
