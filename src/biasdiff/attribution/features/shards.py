"""Shards: safetensors files with the features and norms of a range of rows, written in place.

A shard can be read by anything that reads safetensors. It is laid out and reserved on the disk
before its first row is known, so that rows may come in any order and the disk is full at the start
or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biasdiff.attribution.features.durable import write_at

StorageType = Literal["float32", "float16", "bfloat16"]
STORAGE_TYPES: dict[str, tuple[str, torch.dtype, type[np.generic]]] = {
    "float32": ("F32", torch.float32, np.float32),
    "float16": ("F16", torch.float16, np.float16),
    "bfloat16": ("BF16", torch.bfloat16, np.uint16),  # NumPy has the bits only
}
READ_BYTES = 2**22


@dataclass(frozen=True)
class ShardLayout:
    """Where things are in a shard: header, norms [rows] in float32, features [rows, k]."""

    rows: int
    k: int
    dtype: StorageType

    @cached_property
    def header(self) -> bytes:
        """What a safetensors file begins with."""
        end = self.norm_bytes + self.rows * self.row_bytes
        tensors = {
            "norms": {"dtype": "F32", "shape": [self.rows], "data_offsets": [0, self.norm_bytes]},
            "features": {
                "dtype": STORAGE_TYPES[self.dtype][0],
                "shape": [self.rows, self.k],
                "data_offsets": [self.norm_bytes, end],
            },
        }
        text = json.dumps(tensors, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def norm_bytes(self) -> int:
        """Length of all norms."""
        return 4 * self.rows

    @property
    def row_bytes(self) -> int:
        """Length of a row of features."""
        return self.k * self.numpy_type.itemsize

    @property
    def features_at(self) -> int:
        """Where the features begin."""
        return len(self.header) + self.norm_bytes

    @property
    def size(self) -> int:
        """Length of the file."""
        return self.features_at + self.rows * self.row_bytes

    @property
    def numpy_type(self) -> np.dtype[Any]:
        """Of the stored numbers."""
        return np.dtype(STORAGE_TYPES[self.dtype][2])


def to_stored(features: Tensor, dtype: StorageType) -> NDArray[Any]:
    """Round features to the storage type, as an array on the CPU."""
    rounded = features.detach().to("cpu", STORAGE_TYPES[dtype][1]).contiguous()
    return (rounded.view(torch.uint16) if dtype == "bfloat16" else rounded).numpy()


def from_stored(stored: NDArray[Any], dtype: StorageType) -> Tensor:
    """Return stored features as a tensor of the storage type, without a copy."""
    return torch.from_numpy(stored).view(STORAGE_TYPES[dtype][1])


def create_shard(path: Path, layout: ShardLayout) -> None:
    """Reserve a shard's place on the disk; its rows are zero until they are written."""
    with path.open("wb", buffering=0) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, layout.size)
        else:
            file.truncate(layout.size)
        write_at(file.fileno(), layout.header, 0)
        os.fsync(file.fileno())


def shard_fault(path: Path, layout: ShardLayout, sha256: str | None) -> str | None:
    """Return what is wrong with a shard, or None.

    Args:
        path: Of the shard.
        layout: It should have.
        sha256: It should have; None to look at size and header alone.
    """
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != layout.size:
        return f"has {size:,} bytes of {layout.size:,}"
    with path.open("rb") as file:
        if file.read(len(layout.header)) != layout.header:
            return "has another header"
    if sha256 is not None and checksum(path, layout)[0] != sha256:
        return "is corrupted (another SHA-256)"
    return None


def write_rows(
    file: int, layout: ShardLayout, first: int, features: NDArray[Any], norms: NDArray[Any]
) -> None:
    """Write successive rows in place.

    Args:
        file: Descriptor of the open shard.
        layout: Of the shard.
        first: Number of the first row in the shard.
        features: [m, k], as `to_stored` returns them.
        norms: [m], float32.
    """
    write_at(file, features.tobytes(), layout.features_at + first * layout.row_bytes)
    write_at(file, norms.tobytes(), len(layout.header) + 4 * first)


def row_checksum(features: NDArray[Any], norm: np.float32) -> int:
    """Return the CRC-32 of a stored row and its norm."""
    return zlib.crc32(norm.tobytes(), zlib.crc32(features.data))


def checksum(
    path: Path, layout: ShardLayout, rows: Mapping[int, int] | None = None
) -> tuple[str, list[int]]:
    """Return the SHA-256 of a shard, and which rows differ from what was written.

    Args:
        path: Of the shard, which has the right size.
        layout: Of the shard.
        rows: CRC-32 by number of the row in the shard.
    """
    rows = rows or {}
    digest = hashlib.sha256()
    changed: list[int] = []
    with path.open("rb", buffering=0) as file:
        digest.update(file.read(len(layout.header)))
        norms = np.frombuffer(file.read(layout.norm_bytes), np.float32)
        digest.update(norms.data)
    for start, block in stored_blocks(path, layout, max(1, READ_BYTES // layout.row_bytes)):
        digest.update(block.data)
        changed += [
            start + i
            for i in range(len(block))
            if start + i in rows and row_checksum(block[i], norms[start + i]) != rows[start + i]
        ]
    return digest.hexdigest(), changed


def stored_blocks(path: Path, layout: ShardLayout, rows: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the stored features in blocks of ``rows``, with the number of the first row.

    Each is read into the place of the one before: on a warm file that is twice as fast as a memory
    map, whose pages must each be mapped, and a truncated file cannot end the process.

    Args:
        path: Of the shard.
        layout: Of the shard.
        rows: In a block.

    Raises:
        EOFError: If the file ends early.
    """
    space = np.empty((min(rows, layout.rows), layout.k), layout.numpy_type)
    with path.open("rb", buffering=0) as file:
        file.seek(layout.features_at)
        for start in range(0, layout.rows, rows):
            block = space[: layout.rows - start]
            view = block.view(np.uint8).data.cast("B")
            while view:
                read = file.readinto(view)
                if not read:
                    raise EOFError(f"{path} ends early")
                view = view[read:]
            yield start, block


def read_norms(path: Path, layout: ShardLayout) -> NDArray[np.float32]:
    """Return the norms of a shard's rows, [rows]."""
    return np.fromfile(path, np.float32, count=layout.rows, offset=len(layout.header))


def mapped_features(path: Path, layout: ShardLayout) -> NDArray[Any]:
    """Return a shard's features as a copy-on-write memory map of the stored numbers, [rows, k]."""
    return np.memmap(
        path, layout.numpy_type, "c", offset=layout.features_at, shape=(layout.rows, layout.k)
    )
