"""Kill the demo with SIGKILL at a random moment of each stage; compare with an undisturbed run.

    python benchmarks/kill_and_resume.py runs/demo     # a finished, undisturbed demo

Runs the demo again under another name, killing it once in every stage that takes over a second, and
exits 1 unless the results are the same but for timings, versions and the run's name.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from biasdiff.pipeline.layout import open_run
from biasdiff.pipeline.run import stage_planners

VARYING = ("timings", "versions", "name")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("undisturbed", type=Path, help="run directory of a finished demo")
    parser.add_argument("--name", default="killed-demo")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    expected = _results(options.undisturbed)
    lasted = expected["timings"]["stages"]
    stages = [s for s in stage_planners(open_run(options.undisturbed)) if lasted.get(s, 0) > 1]
    runs = options.undisturbed.parent
    command = [sys.executable, "-m", "biasdiff", "demo", "--quiet"]
    command += ["--set", f"name={options.name}", "--set", f"runs={runs}"]
    draw = random.Random(options.seed)
    for stage in stages:
        _kill_during(command, runs / options.name / stage, draw.uniform(0.05, 0.8) * lasted[stage])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = _results(runs / options.name)
    same = _comparable(found) == _comparable(expected)
    print("the same results" if same else "the results differ")
    for key in expected:
        if key not in VARYING and _comparable(found)[key] != _comparable(expected)[key]:
            print(f"  in {key}")
    sys.exit(0 if same else 1)


def _kill_during(command: list[str], folder: Path, after: float) -> None:
    part = folder.with_name(folder.name + ".part")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not part.exists():
        if process.poll() is not None or folder.exists():
            process.kill()
            print(f"{folder.name}: not caught")
            return
        time.sleep(0.05)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = "unfinished" if part.exists() else "just finished"
    print(f"{folder.name}: killed {after:.1f} s after its start, {state}", flush=True)


def _results(run: Path) -> dict[str, Any]:
    return json.loads((run / "report" / "results.json").read_text())  # type: ignore[no-any-return]


def _comparable(results: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in results.items() if key not in VARYING}
    kept["settings"] = {k: v for k, v in results["settings"].items() if k != "name"}
    return kept


if __name__ == "__main__":
    main()
