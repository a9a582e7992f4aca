"""The user's cache folder, and folders in it that exist only when complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """Return ``$BIASDIFF_CACHE``, else ``biasdiff`` under the user's cache folder."""
    named = os.environ.get("BIASDIFF_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "biasdiff"


def cached_folder(key: str, build: Callable[[Path], None]) -> Path:
    """Return the cache's folder ``key``, calling ``build`` on a temporary one the first time.

    The folder is renamed into place when ``build`` returns, so a killed build leaves no half.
    """
    folder = cache_dir() / key
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(work)
        work.chmod(0o755)
        if not folder.exists():
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder
