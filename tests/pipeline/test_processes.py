"""Several processes, started by ``accelerate launch``, against one; and one of them killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from biasdiff.data.files import write_rows
from biasdiff.data.probe import ProbePair, save_probe_pairs

Folder = Callable[..., Path]
TEXTS = 48


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, str]:
    pairs = [
        ProbePair(f"Women {claim}.", f"Men {claim}.", "stereo", kind, 0, {"stereotype_id": claim})
        for kind in ("gender", "age")
        for claim in (f"lose {n} keys a {kind}" for n in range(10))
    ]
    save_probe_pairs(pairs, tmp_path / "pairs.csv")
    texts = [{"text": f"The river has {n} bridges{' and a ford' * (n % 5)}."} for n in range(TEXTS)]
    write_rows(texts, tmp_path / "train.jsonl")
    return {"pairs": str(tmp_path / "pairs.csv"), "train": str(tmp_path / "train.jsonl")}


def command(processes: int, arguments: list[str]) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "biasdiff", *arguments]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launch, "-m", "biasdiff", *arguments]


def run(processes: int, arguments: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command(processes, arguments),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]


WARMUP = ["--set", "warmup.epochs=2", "--set", "lora.dropout=0"]


def test_two_processes_do_what_one_does(
    tiny_folder: Folder, inputs: dict[str, str], tmp_path: Path
) -> None:
    model = str(tiny_folder("llama"))
    for count in (1, 2):
        folder = tmp_path / str(count)
        warmup = ["warmup", "--model", model, "--train", inputs["train"], "--quiet", *WARMUP]
        run(count, [*warmup, "--out", str(folder / "warmup")])
        scored = ["attribute", "--model", model, "--train", inputs["train"], "--quiet"]
        scored += ["--probe", inputs["pairs"], "--adapter", str(folder / "warmup")]
        scored += ["--estimator", "less", "--also", "contrast,bm25", "--out"]
        run(count, [*scored, str(folder / "scores")])
        evaluated = ["evaluate", model, "--adapter", str(folder / "warmup"), "--quiet"]
        evaluated += ["--pairs", inputs["pairs"], "--texts", inputs["train"]]
        run(count, [*evaluated, "--out", str(folder / "evaluation.json")])
    one, two = tmp_path / "1", tmp_path / "2"
    last = "warmup/checkpoints/epoch-2/adapter_model.safetensors"
    weights, shared = load_file(one / last), load_file(two / last)
    for name, tensor in weights.items():
        np.testing.assert_allclose(shared[name], tensor, atol=2e-6)
    for file in ("scores.parquet", "scores-contrast.parquet", "scores-bm25.parquet"):
        alone, together = (pd.read_parquet(f / "scores" / file) for f in (one, two))
        assert alone["id"].tolist() == together["id"].tolist()
        np.testing.assert_allclose(together["score"], alone["score"], atol=1e-5)
    alone, together = (
        json.loads((f / "evaluation.json").read_text())["metrics"] for f in (one, two)
    )
    for benchmark, metrics in alone.items():
        for name, metric in metrics.items():
            assert together[benchmark][name]["n"] == metric["n"]
            if metric["value"] is None:  # no pair of that direction
                assert together[benchmark][name]["value"] is None
            else:
                assert together[benchmark][name]["value"] == pytest.approx(metric["value"], 1e-4)


def test_scores_of_one_adapter_agree_to_the_sixth_digit_after_a_kill(
    tiny_folder: Folder, inputs: dict[str, str], tmp_path: Path
) -> None:
    model, adapter = str(tiny_folder("llama")), tmp_path / "warmup"
    run(1, ["warmup", "--model", model, "--train", inputs["train"], *WARMUP, "--out", str(adapter)])
    scored = ["attribute", "--model", model, "--train", inputs["train"], "--quiet"]
    scored += ["--probe", inputs["pairs"], "--adapter", str(adapter), "--estimator", "less"]
    scored += ["--set", "model.max_tokens=20", "--out"]
    run(1, [*scored, str(tmp_path / "one")])
    out = tmp_path / "two"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = subprocess.Popen(
        command(2, [*scored, str(out)]),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    chunks = tmp_path / "two.part" / "chunks"
    until = time.monotonic() + 120
    while not list(chunks.glob("*.safetensors")) and time.monotonic() < until:
        time.sleep(0.005)
    victim = _a_worker(started.pid)
    if victim is not None:
        os.kill(victim, signal.SIGKILL)
    started.wait(timeout=120)
    if not out.exists():  # the usual case: the kill came before the end
        assert started.returncode != 0
        kept = {path: path.stat().st_mtime_ns for path in chunks.glob("*.safetensors")}
        assert kept
        run(2, [*scored, str(out)])
    alone, together = (pd.read_parquet(tmp_path / f / "scores.parquet") for f in ("one", "two"))
    columns: list[Any] = [c for c in alone.columns if c.startswith("score")]
    np.testing.assert_allclose(together[columns], alone[columns], atol=1e-6)
    assert together["selected"].tolist() == alone["selected"].tolist()


def _a_worker(parent: int) -> int | None:
    """Return the process id of a worker that the launcher started."""
    listed = subprocess.run(
        ["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False
    )
    found = [int(line) for line in listed.stdout.split()]
    return found[-1] if found else None
