from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from biasdiff.attribution.features.writer import FeatureWriter

ROWS, K = 23, 20


@pytest.fixture
def made_from() -> dict[str, Any]:
    """Return what the features of these tests are made from."""
    return {
        "model": "aa11",
        "adapter": "bb22",
        "dataset": "cc33",
        "train_side": "adam",
        "projection": {"kind": "sjlt", "k": K, "nonzeros": 1},
        "seed": 0,
    }


@pytest.fixture
def ids() -> list[str]:
    """Return the ids of the rows."""
    return [f"example-{row}" for row in range(ROWS)]


@pytest.fixture
def numbers() -> Tensor:
    """Return the features of all rows, [23, 20]; row 5 is zero."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS, K, generator=generator)
    scale = torch.logspace(-6, 1, ROWS)[:, None]  # gradients are small, and differ in length
    features = features * scale
    features[5] = 0
    return features


@pytest.fixture
def write_store(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor
) -> Callable[..., Path]:
    """Return a function that writes all rows, in batches of three, to a folder of some name."""

    def write(
        name: str = "store",
        *,
        batches: list[list[int]] | None = None,
        shard_bytes: int = 6 * (2 * K + 4),
        **settings: Any,
    ) -> Path:
        rows = list(range(ROWS))
        batches = batches or [rows[i : i + 3] for i in range(0, ROWS, 3)]
        writer = FeatureWriter(
            tmp_path / name, made_from, ids, K, shard_bytes=shard_bytes, **settings
        )
        with writer:
            for batch in batches:
                if not writer.written[batch].all():
                    writer.append(batch, numbers[batch])
            return writer.finish()

    return write


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Return a function from a folder to the bytes of its files."""
    return lambda folder: {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
