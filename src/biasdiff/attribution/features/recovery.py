"""What of a killed or broken feature store can be kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biasdiff.attribution.features.durable import sync_folder
from biasdiff.attribution.features.journal import JOURNAL_FILE, Journal
from biasdiff.attribution.features.manifest import IDS_FILE, MANIFEST_FILE, Manifest, Shard
from biasdiff.attribution.features.shards import checksum, create_shard, shard_fault
from biasdiff.data.files import write_whole
from biasdiff.errors import ArtifactError
from biasdiff.progress import task


@dataclass(frozen=True)
class BrokenShard:
    """A shard that has to be written again.

    Attributes:
        file: Its name.
        rows: The rows in it.
        fault: What is wrong, to be read after the name.
    """

    file: str
    rows: range
    fault: str


def broken_shards(folder: Path, manifest: Manifest, *, checksums: bool = True) -> list[BrokenShard]:
    """Return the shards that are not what the manifest says.

    Args:
        folder: With the shards.
        manifest: Of the store.
        checksums: Whether to read all of them; otherwise their sizes and headers are looked at.
    """
    found = []
    with task("checking features", manifest.rows) as progress:
        for shard in manifest.shards:
            sha256 = shard.sha256 if checksums else None
            fault = shard_fault(folder / shard.file, manifest.layout(shard), sha256)
            if fault is not None:
                found.append(BrokenShard(shard.file, shard.span, fault))
            progress.advance(shard.rows)
    return found


def recover(
    folder: Path, manifest: Manifest, broken: list[BrokenShard]
) -> tuple[Manifest, Journal, NDArray[np.bool_]]:
    """Make an unfinished store ready to be gone on with.

    Broken shards are reserved anew. Rows of a shard whose checksum is known are all there; of the
    others those whose CRC-32 is what the journal says.

    Args:
        folder: Of the unfinished store.
        manifest: Of the store.
        broken: Its broken shards.

    Returns:
        The manifest without the checksums of broken shards, the journal, and which rows are there.
    """
    anew = {shard.file for shard in broken}
    shards = [replace(s, sha256=None) if s.file in anew else s for s in manifest.shards]
    manifest = replace(manifest, shards=tuple(shards))
    manifest.write(folder)
    journal = Journal(folder / JOURNAL_FILE)
    written = np.zeros(manifest.rows, dtype=bool)
    for shard in manifest.shards:
        if shard.file in anew:
            create_shard(folder / shard.file, manifest.layout(shard))
        elif shard.sha256 is not None:
            written[shard.span] = True
        else:
            written[_intact_rows(folder, manifest, shard, journal)] = True
    sync_folder(folder)
    return manifest, journal, written


def prepare_folder(folder: Path, ids: str) -> None:
    """Make an unfinished store's folder with its ids file.

    Raises:
        ArtifactError: If it holds something that no writer left there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = {IDS_FILE, f"{IDS_FILE}.tmp", f"{MANIFEST_FILE}.tmp"}
    strays = sorted({path.name for path in folder.iterdir()} - started)
    if strays and not (folder / MANIFEST_FILE).exists():
        raise ArtifactError(
            f"{folder} is no unfinished feature store (it holds {strays[0]})",
            expected="a folder that does not exist yet, or what a killed run left",
            remedy="name another folder",
        )
    if not has_ids(folder, ids):
        write_whole(folder / IDS_FILE, ids)


def has_ids(folder: Path, ids: str) -> bool:
    """Return whether the ids file is there and whole."""
    path = folder / IDS_FILE
    return path.is_file() and path.read_bytes() == ids.encode()


def _intact_rows(
    folder: Path, manifest: Manifest, shard: Shard, journal: Journal
) -> NDArray[np.int64]:
    known = journal.checksums
    local = {row - shard.first: known[row] for row in shard.span if row in known}
    if not local:
        return np.empty(0, dtype=np.int64)
    _, changed = checksum(folder / shard.file, manifest.layout(shard), local)
    return shard.first + np.array(sorted(local.keys() - set(changed)), dtype=np.int64)
