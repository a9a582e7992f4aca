"""Writes a feature store so that a kill at any moment costs no finished batch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from biasdiff.attribution.features.durable import full_disk_named, sync_folder
from biasdiff.attribution.features.journal import JOURNAL_FILE, Journal
from biasdiff.attribution.features.manifest import (
    MANIFEST_FILE,
    Shard,
    check_same,
    ids_text,
    planned_manifest,
    read_manifest,
)
from biasdiff.attribution.features.recovery import (
    broken_shards,
    has_ids,
    prepare_folder,
    recover,
)
from biasdiff.attribution.features.row_ranges import row_ranges, spoken
from biasdiff.attribution.features.shards import StorageType, checksum, row_checksum, write_rows
from biasdiff.attribution.features.stored_rows import stored_rows
from biasdiff.errors import ArtifactError, DataError
from biasdiff.progress import task

SHARD_BYTES = 2**28


class FeatureWriter:
    """Makes, goes on with, or mends the feature store of a folder.

    Rows are written in place in ``<folder>.part``, in any order, and the folder is renamed when all
    of them are there. What is on the disk already is checked and kept: whole shards by their
    SHA-256, rows of the others by the CRC-32 in a journal, which gets a batch only after its rows
    are synced. So the same lines make a store, go on with a killed one, and mend a broken one::

        with FeatureWriter(folder, made_from, ids, k) as writer:
            for batch in batches:
                if not writer.written[batch].all():
                    writer.append(batch, features_of(batch))
            writer.finish()

    Attributes:
        folder: Of the finished store.
        written: [n], which rows are on the disk.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        ids: Sequence[str],
        k: int,
        *,
        dtype: StorageType = "float16",
        normalised: bool = True,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Take over what is on the disk, and reserve room for the rest.

        Args:
            folder: Of the store.
            manifest: What the features are made from: the entries ``MADE_FROM`` and any others.
            ids: Of the rows, n of them.
            k: Numbers in a row.
            dtype: To store them as.
            normalised: Store rows divided by their norms, which keeps small gradients in float16's
                range; the norms are kept beside them.
            shard_bytes: Size of a shard, about.

        Raises:
            DataError: If the folder holds features made from something else; the first difference
                is named.
            ArtifactError: If the disk has no room, or the folder's names are taken.
        """
        self.folder, self._part = folder, folder.with_name(folder.name + ".part")
        self._ids = list(ids)
        self._manifest = planned_manifest(
            manifest, self._ids, k, dtype=dtype, normalised=normalised, shard_bytes=shard_bytes
        )
        self._files: dict[int, int] = {}
        self._journal: Journal | None = None
        self._pool = ThreadPoolExecutor(8)  # syncs that wait together cost about one
        self.written: NDArray[np.bool_] = np.zeros(len(self._ids), dtype=bool)
        self._finished = self._take_over()

    @property
    def missing(self) -> list[range]:
        """Rows that are not on the disk yet."""
        return row_ranges(np.flatnonzero(~self.written))

    def append(self, rows: Sequence[int], features: Tensor, norms: Tensor | None = None) -> None:
        """Write the features of some rows; once this returns, a crash does not lose them.

        Args:
            rows: Their numbers, m of them, in any order.
            features: [m, k], not normalised, on any device.
            norms: [m], lengths that products are divided by for cosines; those of ``features`` if
                not given.

        Raises:
            ValueError: If shapes or row numbers do not fit, or the writer is finished or closed.
            NonFiniteError: If a feature or norm is not finite, or too large for the storage type.
            DataError: If features are too small for the storage type.
            ArtifactError: If the disk is full.
        """
        journal = self._open_journal()
        places = np.asarray(rows, dtype=np.int64)
        self._check_shapes(places, features, norms)
        stored, stored_norms = stored_rows(
            features,
            norms,
            [self._ids[row] for row in places],
            dtype=self._manifest.dtype,
            normalised=self._manifest.normalised,
        )
        order = places.argsort()
        places, stored, stored_norms = places[order], stored[order], stored_norms[order]
        crcs = [row_checksum(stored[i], stored_norms[i]) for i in range(len(places))]
        with self._disk():
            touched = self._write(places, stored, stored_norms)
            list(self._pool.map(os.fsync, touched))
            journal.append(places.tolist(), crcs)
        self.written[places] = True

    def finish(self) -> Path:
        """Seal the store and return its folder.

        Raises:
            DataError: If rows are missing, or what is on the disk is not what was written.
            ValueError: If the writer is closed.
            ArtifactError: If the disk is full.
        """
        if self._finished:
            return self.folder
        journal = self._open_journal()
        if self.missing:
            raise DataError(
                f"{self._part} lacks rows {spoken(self.missing)}",
                expected=f"all {len(self._ids)} rows",
                remedy="append them before the store is finished",
            )
        with self._disk():
            with task("checksums of features", len(self._ids)) as progress:
                shards = []
                for shard in self._manifest.shards:
                    shards.append(shard if shard.sha256 else self._sealed(shard, journal))
                    progress.advance(shard.rows)
            self._manifest = replace(self._manifest, shards=tuple(shards))
            self._manifest.write(self._part)
            self.close()
            (self._part / JOURNAL_FILE).unlink()
            sync_folder(self._part)
            self._part.rename(self.folder)
            sync_folder(self.folder.parent)
        self._finished = True
        return self.folder

    def close(self) -> None:
        """Close all files; finished batches stay."""
        for file in self._files.values():
            os.close(file)
        self._files = {}
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._pool.shutdown()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take_over(self) -> bool:
        """Check and keep what is on the disk; return whether the store is finished and whole."""
        if self.folder.exists() and self._part.exists():
            raise ArtifactError(
                f"{self.folder} and {self._part.name} both exist",
                expected="a finished store or an unfinished one",
                remedy="remove the one that is not wanted",
            )
        ids = ids_text(self._ids)
        place = self.folder if self.folder.exists() else self._part
        if place == self.folder or (place / MANIFEST_FILE).exists():
            found = read_manifest(place)
            check_same(place, found, self._manifest)
            self._manifest = found
        broken = broken_shards(place, self._manifest)
        if place == self.folder:
            if not broken and has_ids(place, ids):
                self.written[:] = True
                return True
            place.rename(self._part)
        with self._disk():
            prepare_folder(self._part, ids)
            self._manifest, self._journal, self.written = recover(
                self._part, self._manifest, broken
            )
        return False

    def _open_journal(self) -> Journal:
        if self._journal is None:
            state = "finished" if self._finished else "closed"
            raise ValueError(f"the writer of {self.folder} is {state}: open it again.")
        return self._journal

    def _check_shapes(
        self, places: NDArray[np.int64], features: Tensor, norms: Tensor | None
    ) -> None:
        m, k = len(places), self._manifest.k
        found = [list(features.shape), [m] if norms is None else list(norms.shape)]
        if found != [[m, k], [m]]:
            raise ValueError(f"features and norms are {found}, expected [[{m}, {k}], [{m}]].")
        inside = bool(((places >= 0) & (places < len(self._ids))).all())
        if not m or not inside or len(np.unique(places)) != m:
            raise ValueError(
                f"row numbers are {places[:8].tolist()}, expected different ones below "
                f"{len(self._ids)}."
            )

    def _write(
        self, places: NDArray[np.int64], stored: NDArray[Any], norms: NDArray[Any]
    ) -> list[int]:
        """Write rows in ascending order and return the files touched."""
        rows_a_shard = self._manifest.shards[0].rows
        touched = []
        for number in np.unique(places // rows_a_shard).tolist():
            shard = self._manifest.shards[number]
            if number not in self._files:
                self._files[number] = os.open(self._part / shard.file, os.O_RDWR)
            touched.append(self._files[number])
            inside = np.flatnonzero(places // rows_a_shard == number)
            for run in np.split(inside, np.flatnonzero(np.diff(places[inside]) != 1) + 1):
                first = int(places[run[0]]) - shard.first
                layout = self._manifest.layout(shard)
                write_rows(self._files[number], layout, first, stored[run], norms[run])
        return touched

    def _sealed(self, shard: Shard, journal: Journal) -> Shard:
        known = {row - shard.first: journal.checksums[row] for row in shard.span}
        path = self._part / shard.file
        sha256, changed = checksum(path, self._manifest.layout(shard), known)
        if changed:
            rows = shard.first + np.array(changed)
            self.written[rows] = False
            raise DataError(
                f"{path} changed on the disk after it was written, in rows "
                f"{spoken(row_ranges(rows))}",
                expected="the bytes that were written",
                remedy="check the disk and start again: these rows are made anew",
            )
        return replace(shard, sha256=sha256)

    def _disk(self) -> AbstractContextManager[None]:
        total = sum(self._manifest.layout(shard).size for shard in self._manifest.shards)
        return full_disk_named(
            self._part,
            lambda: f"{int(self.written.sum())} of {len(self._ids)} rows are written",
            total,
        )
