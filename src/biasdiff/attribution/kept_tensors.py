"""Parts of an interrupted pass that are on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def keep_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors so that the file is never seen half-written; ``load_file`` reads them."""
    work = file.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, work)
    work.rename(file)
