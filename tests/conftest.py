from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from biasdiff.data.encoding import Encoding
from tiny_models import adapt, load_tiny, save_tiny_model

torch.set_num_threads(1)  # tiny tensors: a second thread only waits


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function from an architecture to a folder with a tiny model of it."""
    root = tmp_path_factory.mktemp("tiny-models")
    made: dict[str, Path] = {}

    def make(architecture: str, *, bos: bool = True, chat: bool = False) -> Path:
        key = f"{architecture}-{bos}-{chat}"
        if key not in made:
            made[key] = save_tiny_model(root / key, architecture, bos=bos, chat=chat)
        return made[key]

    return make


@pytest.fixture
def tiny(tiny_folder: Callable[..., Path]) -> Callable[..., tuple[Any, Any]]:
    """Return a function from architecture and dtype to a fresh model and its tokenizer."""
    return lambda architecture, dtype=torch.float32: load_tiny(tiny_folder(architecture), dtype)


@pytest.fixture
def adapted(tiny: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Return a function to a fresh tiny model with random LoRA weights and its tokenizer."""

    def make(
        architecture: str = "llama", dtype: torch.dtype = torch.float32, **lora: Any
    ) -> tuple[Any, Any]:
        base, tokenizer = tiny(architecture, dtype)
        return adapt(base, **lora), tokenizer

    return make


@pytest.fixture
def encodings(tiny_folder: Callable[..., Path]) -> list[Encoding]:
    """Return the encoded `SENTENCES`; every tiny model has the same tokenizer."""
    from tiny_models import encode_sentences, tiny_tokenizer

    return encode_sentences(tiny_tokenizer())


@pytest.fixture(autouse=True)
def _short_bootstraps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw fewer resamples of the areas under curves; no test depends on their number."""
    monkeypatch.setattr("biasdiff.evaluation.detection.RESAMPLES", 50)
