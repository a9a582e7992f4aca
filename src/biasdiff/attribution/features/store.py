"""Opens a feature store, after checking that it is whole and made from what is expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biasdiff.attribution.features.manifest import (
    Manifest,
    check_entries,
    read_ids,
    read_manifest,
)
from biasdiff.attribution.features.recovery import broken_shards
from biasdiff.attribution.features.row_ranges import spoken
from biasdiff.attribution.features.shards import from_stored, mapped_features, read_norms
from biasdiff.errors import DataError


@dataclass(frozen=True)
class FeatureStore:
    """A finished feature store.

    Attributes:
        folder: Where it is.
        manifest: What it says of itself.
        ids: Of the rows.
    """

    folder: Path
    manifest: Manifest
    ids: list[str]

    @cached_property
    def norms(self) -> NDArray[np.float32]:
        """Norms of the rows, [n]."""
        parts = [
            read_norms(self.folder / shard.file, self.manifest.layout(shard))
            for shard in self.manifest.shards
        ]
        return np.concatenate(parts)

    def features(self, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop - 1`` as they are stored, [.., k] in float32.

        They are divided by their norms if the manifest says ``normalised``.
        """
        parts = [torch.empty(0, self.manifest.k)]
        for shard in self.manifest.shards:
            first, last = max(start, shard.first), min(stop, shard.first + shard.rows)
            if first < last:
                layout = self.manifest.layout(shard)
                stored = mapped_features(self.folder / shard.file, layout)
                part = stored[first - shard.first : last - shard.first]
                parts.append(from_stored(part, layout.dtype).float())
        return torch.cat(parts)


def open_store(
    folder: Path, expected: Mapping[str, Any] | None = None, *, checksums: bool = True
) -> FeatureStore:
    """Open a finished feature store.

    Args:
        folder: Of the store.
        expected: Entries of its manifest and the values they must have, such as fingerprints of
            model, adapter and data set, train side, projection and seed.
        checksums: Whether to read every shard once; otherwise only sizes and headers are checked.

    Raises:
        DataError: If the store is missing, unfinished or made from something else, naming the first
            entry that differs with both values, or if shards are missing or corrupted, naming them.
    """
    part = folder.with_name(folder.name + ".part")
    if not folder.exists() and part.exists():
        raise DataError(
            f"{folder} is unfinished: there is only {part.name}",
            expected="a finished feature store",
            remedy="make the features again: what is there is gone on with",
        )
    manifest = read_manifest(folder)
    check_entries(folder, manifest, expected or {})
    ids = read_ids(folder, manifest)
    broken = broken_shards(folder, manifest, checksums=checksums)
    if broken:
        named = "; ".join(f"{s.file} {s.fault}, with rows {spoken([s.rows])}" for s in broken[:4])
        raise DataError(
            f"{folder}: {named}" + (f"; and {len(broken) - 4} more" if len(broken) > 4 else ""),
            expected="shards as they were written",
            remedy="make the features again: only these rows are made anew",
        )
    return FeatureStore(folder, manifest, ids)


def missing_or_broken(folder: Path) -> list[range]:
    """Return the rows of shards that are missing or not as they were written.

    Raises:
        DataError: If the folder is no feature store.
    """
    return [shard.rows for shard in broken_shards(folder, read_manifest(folder))]
