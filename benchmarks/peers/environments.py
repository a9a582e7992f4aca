"""One virtual environment for each peer, with the same torch, transformers and PEFT as ours."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ("torch", "transformers", "peft", "accelerate", "numpy", "safetensors", "tokenizers")
BASE = ("torch", "numpy", "safetensors", "transformers", "peft")


@dataclass(frozen=True)
class Environment:
    """What a peer's environment holds.

    Attributes:
        package: The peer's library with its version, installed without what it asks for.
        needs: What its code really imports. Left out are torchvision, torchaudio, bitsandbytes and
            pretty_midi: no attribution code imports them, and PyPI's torchvision does not load
            beside a CPU build of torch.
    """

    package: str = ""
    needs: tuple[str, ...] = ()


ENVIRONMENTS = {
    "less_as_published": Environment(),
    "bergson": Environment(
        "bergson==2.5.1",
        (
            "accelerate", "datasets", "jinja2", "jaxtyping>=0.3.3", "ml_dtypes", "natsort",
            "scipy", "petname", "pyarrow", "pyyaml", "simple-parsing", "torchopt", "pandas",
            "psutil", "huggingface-hub>=1.13",
        ),
    ),
    "dattri": Environment("dattri==0.3.0", ("scipy", "pyyaml", "tqdm")),
    "kronfluence": Environment(
        "kronfluence==1.0.1", ("accelerate", "einops", "einconv", "opt-einsum", "tqdm")
    ),
    "traker": Environment("traker==0.3.2", ("tqdm",)),
}  # fmt: skip


def prepare(peer: str, folder: Path) -> Path:
    """Return the interpreter of a peer's environment, making it if need be.

    Raises:
        subprocess.CalledProcessError: If pip fails; its own words are on the screen.
    """
    environment, place = ENVIRONMENTS[peer], folder / peer
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    versions = [f"{name}=={installed(name)}" for name in SHARED]
    wanted = "\n".join([environment.package, *environment.needs, *versions])
    ready = place / ".ready"
    if ready.is_file() and ready.read_text() == wanted:
        return python
    print(f"making the environment of {peer} in {place}", flush=True)
    venv.create(place, with_pip=True, clear=True)
    constraints = place / "constraints.txt"
    constraints.write_text("\n".join(versions) + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints)]
    # torch by itself and first: a later package cannot then bring another build of it
    subprocess.run([*pip, f"torch=={installed('torch')}"], check=True)
    subprocess.run([*pip, *BASE, *environment.needs], check=True)
    if environment.package:
        subprocess.run([*pip, "--no-deps", environment.package], check=True)
    ready.write_text(wanted)
    return python


def installed(package: str) -> str:
    """Return the version here, without a build's own label such as +cpu."""
    return importlib.metadata.version(package).split("+")[0]


if __name__ == "__main__":  # python environments.py FOLDER [PEER ...]
    for name in sys.argv[2:] or ENVIRONMENTS:
        print(name, prepare(name, Path(sys.argv[1]).expanduser()))
