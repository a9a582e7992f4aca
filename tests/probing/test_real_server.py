"""`biasdiff probe generate` against `transformers serve` with the real model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from biasdiff.models.smollm2 import smollm2_folder

pytestmark = pytest.mark.real
REQUESTS = 2


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, str]]:
    """Serve SmolLM2 on loopback; yield the address and the model's name there."""
    model = str(smollm2_folder())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", port, "--device", "cpu", model],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            assert process.poll() is None, "transformers serve has ended"
            try:
                if httpx.get(f"{address}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield f"{address}/v1", model
    finally:
        process.kill()
        process.wait()


def test_replies_of_a_real_model_are_kept_and_accounted_for(
    server: tuple[str, str], tmp_path: Path
) -> None:
    address, model = server
    out = tmp_path / "probe.csv"
    command = [sys.executable, "-m", "biasdiff", "probe", "generate"]
    command += ["--endpoint", address, "--model", model, "--out", str(out), "--n", "50"]
    command += ["--max-requests", str(REQUESTS), "--max-tokens", "64", "--concurrency", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    replies = (tmp_path / "probe.replies.jsonl").read_text().splitlines()
    assert [json.loads(line)["request"] for line in replies] == [0, 1]
    assert all(json.loads(line)["text"] for line in replies)
    rejected = (tmp_path / "probe.rejected.jsonl").read_text().splitlines()
    kept = len(out.read_text().splitlines()) - 1
    assert {json.loads(line)["request"] for line in rejected} <= {0, 1}
    assert f"{kept} of 50 pairs from {REQUESTS} replies, {len(rejected)} entries" in done.stdout
    assert kept + len(rejected) >= REQUESTS
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "probe.replies.jsonl").read_text().splitlines() == replies
