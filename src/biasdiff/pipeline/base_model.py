"""The base model of a stage, with what is needed to make batches for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biasdiff.config import Config, ModelConfig
from biasdiff.data.encoding import Encoding, encode_all
from biasdiff.data.records import TrainExample
from biasdiff.errors import ModelError
from biasdiff.models.loading import (
    ModelSource,
    context_length,
    default_device,
    load_model,
    load_tokenizer,
    parse_dtype,
)
from biasdiff.training.warmup import CHECKPOINTS


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: Its tokenizer.
        max_length: Context length in tokens.
    """

    model: Any
    tokenizer: Any
    max_length: int

    def encode(self, examples: Sequence[TrainExample], *, strict: bool) -> list[Encoding]:
        """Encode a train set for this model, cutting to its context."""
        return encode_all(self.tokenizer, examples, max_length=self.max_length, strict=strict)[0]


def load_base(source: ModelSource, settings: ModelConfig) -> BaseModel:
    """Load model and tokenizer in the dtype of the settings."""
    device = default_device()
    tokenizer = load_tokenizer(source, trust_remote_code=settings.trust_remote_code)
    model = load_model(
        source,
        dtype=parse_dtype(settings.dtype, device),
        device=device,
        trust_remote_code=settings.trust_remote_code,
    )
    return BaseModel(model, tokenizer, context_length(model, tokenizer))


def model_settings(config: Config) -> dict[str, Any]:
    """Return the settings of the model that change what comes out of it."""
    return {
        "dtype": str(parse_dtype(config.model.dtype, default_device())).removeprefix("torch."),
        "max_tokens": config.model.max_tokens,
    }


def find_adapter(folder: str | Path, *, epoch: int | None = None) -> Path:
    """Return the adapter in a folder: itself, or a checkpoint of a warm-up in it.

    Args:
        folder: Adapter or warm-up folder.
        epoch: Checkpoint of a warm-up to take; None for the last.

    Raises:
        ModelError: If there is none.
    """
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file():
        return folder
    if epoch is not None:
        chosen = folder / CHECKPOINTS / f"epoch-{epoch}"
        if not chosen.is_dir():
            raise ModelError(
                f"{folder} has no checkpoint of epoch {epoch}",
                expected=f"{chosen.name} under {CHECKPOINTS}",
                remedy="change attribution.checkpoint",
            )
        return chosen
    epochs = _epochs(folder)
    if not epochs or not (epochs[-1] / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds no adapter",
            expected="adapter_config.json, or checkpoints of 'biasdiff warmup'",
            remedy="check the path",
        )
    return epochs[-1]


def find_checkpoints(folder: str | Path) -> list[Path]:
    """Return all checkpoints of a warm-up, the first epoch first.

    Raises:
        ModelError: If the folder is none of a warm-up.
    """
    epochs = _epochs(Path(folder))
    if not epochs:
        raise ModelError(
            f"{folder} has no checkpoints of a warm-up",
            expected=f"epochs under {CHECKPOINTS}, as 'biasdiff warmup' writes them",
            remedy="name a warm-up folder, or set attribution.checkpoints to last",
        )
    return epochs


def _epochs(folder: Path) -> list[Path]:
    return sorted(
        folder.glob(f"{CHECKPOINTS}/epoch-*"), key=lambda p: int(p.name.rpartition("-")[2])
    )
