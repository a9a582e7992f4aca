"""Files that are on the disk once a call returns, and what to say when the disk is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from biasdiff.errors import ArtifactError


def write_at(file: int, content: bytes, place: int) -> None:
    """Write all of ``content`` at a place of an open file; not yet durable."""
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def full_disk_named(folder: Path, progress: Callable[[], str], size: int) -> Iterator[None]:
    """Turn the system's error of a full disk into one that says what to do.

    Args:
        folder: That is written to.
        progress: Returns how far the work has come, in words.
        size: Bytes that are needed in all.

    Raises:
        ArtifactError: If the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ArtifactError(
            f"no space left on the disk of {folder} ({progress()})",
            expected=f"room for {size:,} bytes in all",
            remedy="free some and start again: finished batches are kept",
        ) from error
