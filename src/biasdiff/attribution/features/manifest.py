"""What a feature store says of itself, and how that is compared with what is wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from biasdiff.attribution.features.shards import STORAGE_TYPES, ShardLayout, StorageType
from biasdiff.data.files import write_whole
from biasdiff.errors import DataError
from biasdiff.options import flattened

FORMAT = 1
MANIFEST_FILE, IDS_FILE = "manifest.json", "ids.json"
MADE_FROM = ("model", "adapter", "dataset", "train_side", "projection", "seed")
"""What every store must say of its making; more may be said."""
OWN = ("format", "rows", "k", "dtype", "normalised", "ids", "shards")


@dataclass(frozen=True)
class Shard:
    """A file with the rows from ``first`` on; ``sha256`` is None while it is being written."""

    file: str
    first: int
    rows: int
    sha256: str | None = None

    @property
    def span(self) -> range:
        """Its rows."""
        return range(self.first, self.first + self.rows)


@dataclass(frozen=True)
class Manifest:
    """Description of a feature store.

    Attributes:
        made_from: Fingerprints and settings the features depend on, JSON values only.
        rows: Number of examples n.
        k: Numbers in a row.
        dtype: They are stored as.
        normalised: Whether rows were divided by their norms before they were stored.
        ids_sha256: Of the ids file.
        shards: Files in the order of their rows.
    """

    made_from: Mapping[str, Any]
    rows: int
    k: int
    dtype: StorageType
    normalised: bool
    ids_sha256: str
    shards: tuple[Shard, ...]

    def layout(self, shard: Shard) -> ShardLayout:
        """Return where things are in a shard."""
        return ShardLayout(shard.rows, self.k, self.dtype)

    @property
    def entries(self) -> dict[str, Any]:
        """Everything but the shards, as it stands in the file."""
        return {
            "format": FORMAT,
            **self.made_from,
            "rows": self.rows,
            "k": self.k,
            "dtype": self.dtype,
            "normalised": self.normalised,
            "ids": {"file": IDS_FILE, "sha256": self.ids_sha256},
        }

    def write(self, folder: Path) -> None:
        """Write the manifest so that it is never seen half-written."""
        record = {**self.entries, "shards": [vars(shard) for shard in self.shards]}
        write_whole(folder / MANIFEST_FILE, json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a store's manifest.

    Raises:
        DataError: If it is missing, malformed or of another format.
    """
    path = folder / MANIFEST_FILE
    remedy = "name a folder of gradient features, or make them anew"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        shards = tuple(Shard(**shard) for shard in record["shards"])
        made_from = {key: value for key, value in record.items() if key not in OWN}
        found = record["format"]
        manifest = Manifest(
            made_from,
            record["rows"],
            record["k"],
            record["dtype"],
            record["normalised"],
            record["ids"]["sha256"],
            shards,
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} has no {MANIFEST_FILE}", expected="a feature store", remedy=remedy
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is not whole ({type(error).__name__}: {error})",
            expected="the manifest of a feature store",
            remedy=remedy,
        ) from error
    if found != FORMAT or manifest.dtype not in STORAGE_TYPES:
        raise DataError(
            f"{path} has format {found!r} with dtype {manifest.dtype!r}",
            expected=f"format {FORMAT} with one of {', '.join(STORAGE_TYPES)}",
            remedy=remedy,
        )
    return manifest


def check_entries(folder: Path, found: Manifest, expected: Mapping[str, Any]) -> None:
    """Refuse a store that was made from something else.

    Args:
        folder: Of the store, for the error message.
        found: Its manifest.
        expected: Entries and the values they must have; nested ones are compared one by one.

    Raises:
        DataError: Naming the first entry that differs, with both values.
    """
    before, wanted = flattened(found.entries), flattened(json.loads(json.dumps(dict(expected))))
    for key, value in wanted.items():
        if key not in before or before[key] != value:
            was = _shown(before[key]) if key in before else "absent"
            raise DataError(
                f"{folder}: {key} is {was}",
                expected=f"{key} {_shown(value)}",
                remedy="make the features anew in another folder, or name the store made from this",
            )


def check_same(folder: Path, found: Manifest, wanted: Manifest) -> None:
    """Refuse to go on with a store that was made from something else, see `check_entries`."""
    expected = flattened(wanted.entries)
    strays = dict.fromkeys(key for key in flattened(found.entries) if key not in expected)
    check_entries(folder, found, {**expected, **strays})


def planned_manifest(
    made_from: Mapping[str, Any],
    ids: Sequence[str],
    k: int,
    *,
    dtype: StorageType,
    normalised: bool,
    shard_bytes: int,
) -> Manifest:
    """Return the manifest of a store that is yet to be written, see `FeatureWriter`.

    Raises:
        ValueError: If there is nothing to store, or ``made_from`` lacks an entry, sets one that the
            store writes itself, or is no JSON.
    """
    if not ids or k < 1 or dtype not in STORAGE_TYPES:
        raise ValueError(
            f"a store of {len(ids)} rows with {k} numbers as {dtype}, expected at least 1 of both "
            f"as one of {', '.join(STORAGE_TYPES)}."
        )
    sha256 = hashlib.sha256(ids_text(ids).encode()).hexdigest()
    rows = len(ids)
    manifest = Manifest(_checked(made_from), rows, k, dtype, normalised, sha256, ())
    each = max(1, shard_bytes // (4 + manifest.layout(Shard("", 0, 1)).row_bytes))
    shards = [
        Shard(f"features-{number:05d}.safetensors", first, min(each, rows - first))
        for number, first in enumerate(range(0, rows, each))
    ]
    return replace(manifest, shards=tuple(shards))


def ids_text(ids: Sequence[str]) -> str:
    """Return the ids file's content."""
    return json.dumps(list(ids), indent=0) + "\n"


def read_ids(folder: Path, manifest: Manifest) -> list[str]:
    """Read the ids of the rows.

    Raises:
        DataError: If the file is missing or was changed.
    """
    path = folder / IDS_FILE
    content = path.read_bytes() if path.is_file() else None
    if content is None or hashlib.sha256(content).hexdigest() != manifest.ids_sha256:
        raise DataError(
            f"{path} is {'missing' if content is None else 'not the file that was written'}",
            expected=f"SHA-256 {manifest.ids_sha256}",
            remedy="make the features again: the file is written anew, nothing else",
        )
    return json.loads(content)  # type: ignore[no-any-return]


def _checked(made_from: Mapping[str, Any]) -> dict[str, Any]:
    missing = [key for key in MADE_FROM if key not in made_from]
    reserved = [key for key in made_from if key in OWN]
    if missing or reserved:
        raise ValueError(
            f"the manifest lacks {missing} and sets {reserved}, expected all of {MADE_FROM} and "
            "none of what the store writes itself."
        )
    try:
        return json.loads(json.dumps(dict(made_from), allow_nan=False))  # type: ignore[no-any-return]
    except TypeError as error:
        raise ValueError(f"the manifest must hold JSON values only: {error}.") from error


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
