from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from biasdiff.attribution.features.store import open_store
from biasdiff.attribution.features.writer import FeatureWriter

ROWS, K = 23, 20
SHARD_BYTES = 6 * (2 * K + 4)
SCRIPT = """
import sys, time
from pathlib import Path
import torch
from biasdiff.attribution.features.writer import FeatureWriter
made_from = {key: "x" for key in ("model", "adapter", "dataset", "train_side", "projection")}
rows, k = 400, 64
features = torch.randn(rows, k, generator=torch.Generator().manual_seed(0))
writer = FeatureWriter(
    Path(sys.argv[1]), {**made_from, "seed": 0}, [str(i) for i in range(rows)], k, shard_bytes=9000
)
print("found", int(writer.written.sum()), flush=True)
order = torch.randperm(rows, generator=torch.Generator().manual_seed(1)).tolist()
for start in range(0, rows, 4):
    batch = order[start : start + 4]
    if not writer.written[batch].all():
        writer.append(batch, features[batch])
        print("written", start + 4, flush=True)
        time.sleep(0.002)
writer.finish()
"""


def test_a_killed_process_is_gone_on_with_to_the_same_bytes(
    tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    script = tmp_path / "write.py"
    script.write_text(SCRIPT)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "store"
    subprocess.run([sys.executable, script, undisturbed], check=True, stdout=subprocess.DEVNULL)
    kept = 0
    for batches in (13, 40):
        process = subprocess.Popen(
            [sys.executable, script, folder], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == f"found {kept}\n"
        lines = [process.stdout.readline() for _ in range(batches)]
        time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait()
        assert not folder.exists()
        with FeatureWriter(folder, *_wanted()) as writer:
            kept = int(writer.written.sum())
        announced = int(lines[-1].split()[1])
        assert kept >= announced, "a batch was lost after append returned"
        assert kept <= announced + 4
    subprocess.run([sys.executable, script, folder], check=True, stdout=subprocess.DEVNULL)
    assert contents(folder) == contents(undisturbed)


def _wanted() -> tuple[dict[str, Any], list[str], int]:
    keys = ("model", "adapter", "dataset", "train_side", "projection")
    return {**dict.fromkeys(keys, "x"), "seed": 0}, [str(i) for i in range(400)], 64


CALLS = ("pwrite", "fsync", "rename", "unlink", "ftruncate", "posix_fallocate", "mkdir", "open")


def _die_at(call: int) -> None:
    """Kill this process with SIGKILL just before its system call of that number."""
    made = {"n": 0}

    def dying(real: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if made["n"] == call:
            if real is pwrite:  # torn: half of it gets through
                file, content, place = arguments
                real(file, content[: len(content) // 2], place)
            os.kill(os.getpid(), signal.SIGKILL)
        made["n"] += 1
        return real(*arguments, **keywords)

    pwrite = os.pwrite
    for name in CALLS:
        if hasattr(os, name):
            real = getattr(os, name)
            setattr(os, name, lambda *a, _real=real, **k: dying(_real, *a, **k))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process for each call")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("mending", [False, True])
def test_a_kill_before_any_system_call_loses_nothing(
    tmp_path: Path,
    write_store: Callable[..., Path],
    contents: Callable[[Path], dict[str, bytes]],
    made_from: dict[str, Any],
    ids: list[str],
    numbers: Tensor,
    mending: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # slow, and no part of surviving a kill
    expected = contents(write_store("undisturbed"))
    torch.set_num_threads(1)

    def write(folder: Path) -> None:
        """Write what is missing, noting each batch that append returned from."""
        writer = FeatureWriter(folder, made_from, ids, K, shard_bytes=SHARD_BYTES)
        for batch in np.array_split(np.random.default_rng(0).permutation(ROWS), 6):
            if not writer.written[batch].all():
                writer.append(batch.tolist(), numbers[batch])
                with (folder.parent / f"{folder.name}.log").open("a") as log:
                    log.write(" ".join(map(str, batch)) + "\n")
        writer.finish()

    call, died = 0, True
    while died:
        folder = tmp_path / f"store-{call}"
        if mending:
            write_store(folder.name)
            (folder / "features-00001.safetensors").write_bytes(b"broken")
            (folder / "features-00003.safetensors").unlink()
        child = os.fork()
        if child == 0:
            try:
                _die_at(call)
                write(folder)
                os._exit(0)
            except BaseException:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        died = os.WIFSIGNALED(status)
        assert died or os.WEXITSTATUS(status) == 0
        log = tmp_path / f"{folder.name}.log"
        returned = {int(row) for row in log.read_text().split()} if log.exists() else set()
        if folder.exists() and not mending:
            open_store(folder)  # existence means done
        with FeatureWriter(folder, made_from, ids, K, shard_bytes=SHARD_BYTES) as writer:
            assert returned <= set(np.flatnonzero(writer.written).tolist()), call
        write(folder)
        assert contents(folder) == expected, call
        assert not folder.with_name(f"{folder.name}.part").exists()
        call += 1
    assert call > (25 if mending else 50), "hardly any system call was seen"
