"""GGUF weights, dequantised once into a folder that loads like any other model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from biasdiff.cache import cached_folder
from biasdiff.errors import ModelError
from biasdiff.progress import say


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dequantised_folder(path: Path) -> Path:
    """Return a cached folder with the weights of a ``.gguf`` file in float32 safetensors.

    Raises:
        ModelError: If transformers cannot read the file.
    """
    return cached_folder(f"gguf/{sha256(path)}", lambda folder: dequantise(path, folder))


def dequantise(path: Path, folder: Path) -> None:
    """Write the float32 weights, config and tokenizer of a ``.gguf`` file into ``folder``.

    transformers refuses to save a model that it loaded from GGUF, so the weights go through a
    fresh model of the same config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say(f"  dequantising {path.name} (once)")
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except Exception as error:  # the GGUF reader raises many unrelated types
        raise ModelError(
            f"{path} cannot be read as GGUF ({type(error).__name__}: {error})",
            expected="a GGUF file of an architecture that transformers converts",
            remedy="check the download, or use the model's safetensors",
        ) from error
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    if loaded.generation_config is not None:
        fresh.generation_config = loaded.generation_config
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
