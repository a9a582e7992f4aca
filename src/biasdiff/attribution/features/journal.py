"""Journal of the rows that are on the disk, so that killed work goes on after its last batch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from biasdiff.attribution.features.durable import write_at

JOURNAL_FILE = "journal.jsonl"


class Journal:
    """One line for each batch: its rows and the CRC-32 of each; the latest line about a row counts.

    Attributes:
        checksums: CRC-32 by row, of all lines.
    """

    def __init__(self, path: Path) -> None:
        self.checksums: dict[int, int] = {}
        content = path.read_bytes() if path.exists() else b""
        # A line without its end was being written when the process died.
        self._length = content.rfind(b"\n") + 1
        for line in content[: self._length].splitlines():
            self._read(line)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(self._file, self._length)

    def append(self, rows: Sequence[int], checksums: Sequence[int]) -> None:
        """Add a batch; once this returns it survives a crash. Call it after the rows are synced."""
        line = json.dumps({"rows": list(rows), "crc32": list(checksums)}) + "\n"
        write_at(self._file, line.encode(), self._length)
        os.fsync(self._file)
        # Only now, so that half a line of a full disk is overwritten by the next attempt.
        self._length += len(line)
        self.checksums.update(zip(rows, checksums, strict=True))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _read(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            self.checksums.update(zip(record["rows"], record["crc32"], strict=True))
        except (ValueError, TypeError, KeyError):
            return  # a damaged line: its rows count as not written and are made again
