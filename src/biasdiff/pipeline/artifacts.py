"""Artifacts: folders that exist only when complete, and are never reused under other settings."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from biasdiff.data.files import write_whole
from biasdiff.errors import ArtifactError
from biasdiff.options import flattened
from biasdiff.pipeline.versions import git_revision, library_versions
from biasdiff.progress import say
from biasdiff.training import processes

FINGERPRINT_FILE = "fingerprint.json"
STAGE_FILE = "stage.json"
State = Literal["missing", "partial", "complete", "stale"]


@dataclass(frozen=True)
class Artifact:
    """A stage's output folder, and what it depends on.

    `make` writes into ``<folder>.part``: the fingerprint of settings and inputs first, the payload,
    ``stage.json`` last; then the folder is renamed. So a folder that exists is complete, and a
    ``.part`` may be gone on with if its fingerprint is the same.

    Attributes:
        stage: The stage's name.
        folder: Where the output goes.
        settings: Resolved settings that the output depends on, JSON values only.
        inputs: Fingerprint of every input, by role.
        build: Writes the payload into the folder it is given, going on with what it finds there.
        shared: Whether several processes, where they were started, build it together; else the
            first one does and the others wait.
    """

    stage: str
    folder: Path
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    build: Callable[[Path], None]
    shared: bool = False

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What is compared before anything is reused."""
        wanted = {
            "stage": self.stage,
            "settings": dict(self.settings),
            "inputs": dict(self.inputs),
        }
        return json.loads(json.dumps(wanted))  # type: ignore[no-any-return]

    @property
    def part(self) -> Path:
        """Where unfinished work is kept."""
        return self.folder.with_name(self.folder.name + ".part")

    def state(self) -> State:
        """Return what is on disk: missing, partial, complete, or stale (made from other things)."""
        for folder, state in ((self.folder, "complete"), (self.part, "partial")):
            if folder.exists():
                return state if not self._differences(folder) else "stale"  # type: ignore[return-value]
        return "missing"

    def make(self, *, force: bool = False) -> Path:
        """Build the artifact unless it is complete, and return its folder.

        Args:
            force: Discard what was made from other settings or inputs instead of refusing.

        Raises:
            ArtifactError: If the folder holds something else, or work made from other settings or
                inputs; the differences are listed.
        """
        if processes.is_first():
            self._prepare(force=force)
        processes.wait_for_all()
        if self.folder.exists():
            return self.folder
        began = time.perf_counter()
        if self.shared or processes.is_first():
            self.build(self.part)
        gc.collect()  # models sit in reference cycles; two at once would double the memory
        processes.wait_for_all()
        if processes.is_first():
            self._finish(time.perf_counter() - began)
        processes.wait_for_all()
        return self.folder

    def _prepare(self, *, force: bool) -> None:
        """Clear the way for the work, or see that there is none to do."""
        for folder in (self.folder, self.part):
            if folder.exists() and not (folder / FINGERPRINT_FILE).is_file():
                self._clear_empty(folder)
            differences = self._differences(folder) if folder.exists() else []
            if differences and not force:
                raise ArtifactError(
                    f"{folder} was made from other settings or inputs ({'; '.join(differences)})",
                    expected="the settings and inputs it was made from",
                    remedy="give --force to make it anew, or another output folder",
                )
            if differences:
                shutil.rmtree(folder)
        if self.folder.exists():
            say(f"{self.stage}: complete, nothing to do")
            return
        say(f"{self.stage}: {'going on' if self.part.exists() else 'started'}")
        self.part.mkdir(parents=True, exist_ok=True)
        write_json(self.part / FINGERPRINT_FILE, self.fingerprint)

    def _finish(self, seconds: float) -> None:
        record = self.fingerprint | {
            "seconds": round(seconds, 2),
            "versions": library_versions(),
            "git_revision": git_revision(),
        }
        write_json(self.part / STAGE_FILE, record)
        self.part.rename(self.folder)
        say(f"{self.stage}: done in {seconds:.0f} s")

    def _clear_empty(self, folder: Path) -> None:
        """Remove an empty folder; never touch one that holds what biasdiff did not write."""
        leftovers = [] if not folder.is_dir() else [p.name for p in folder.iterdir()]
        if not folder.is_dir() or set(leftovers) - {f"{FINGERPRINT_FILE}.tmp"}:
            raise ArtifactError(
                f"{folder} is no output of biasdiff"
                + (f" (it holds {leftovers[0]})" if leftovers else ""),
                expected="a folder that does not exist yet, or an earlier output",
                remedy="name another output folder",
            )
        shutil.rmtree(folder)

    def _differences(self, folder: Path) -> list[str]:
        try:
            found = read_json(folder / FINGERPRINT_FILE)
        except (OSError, ValueError):
            return [f"it has no whole {FINGERPRINT_FILE}"]
        before, now = flattened(found), flattened(self.fingerprint)
        return [
            f"{key}: {_short(before.get(key))} -> {_short(now.get(key))}"
            for key in dict.fromkeys([*before, *now])
            if before.get(key) != now.get(key)
        ]


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def file_fingerprint(path: str | Path) -> str:
    """Return the SHA-256 of a file, or the name itself for something that is no file (a hub id)."""
    path = Path(path)
    if not path.is_file():
        return f"name:{path}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """Return the SHA-256 over the names and contents of a folder's own files."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(f"{file.name} {file_fingerprint(file)}\n".encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def write_json(path: Path, record: Any) -> None:
    """Write JSON so that the file is never seen half-written."""
    write_whole(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
