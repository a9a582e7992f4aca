"""Tokens per second of other attribution libraries and of biasdiff, and whether values agree.

Every peer has an environment of its own; each measurement is a process of its own, in which the
model is loaded and the pass warmed up before the clock starts. Rounds alternate peers and ours, and
the ratio is taken in each round. Goes on where it was stopped; a peer's failure stops no other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"
sys.path[:0] = [str(HERE), str(SOURCE)]

from environments import ENVIRONMENTS, SHARED, installed, prepare  # noqa: E402
from expected import departure, expected  # noqa: E402
from job_files import tiny_model, write_job  # noqa: E402
from peer import Job  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

OURS = {"gradients": "gradients", "less": "less", "less-features": "less", "adam": "less"}
"""Our variant beside each kind of row; else the exact scores, which need no projection."""


class PeerError(Exception):
    """A peer's process failed; with its last words."""


class Bench:
    """The results so far, and the peers' processes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = options.out.resolve()
        self.pythons: dict[str, Path] = {"ours": Path(sys.executable)}
        self.variants: dict[str, dict[str, Any]] = {}
        self.results: dict[str, Any] = {}

    def start(self) -> None:
        """Write the job and take up earlier results of the same job."""
        self.out.mkdir(parents=True, exist_ok=True)
        job = write_job(
            self.out / "job",
            str(tiny_model(self.out)) if self.options.tiny else self.options.model,
            examples=self.options.examples,
            checked=self.options.check_examples,
            threads=self.options.threads,
            projection=self.options.projection,
        )
        facts = {"job": job, "versions": {name: installed(name) for name in SHARED}}
        if self.file.is_file():
            self.results = json.loads(self.file.read_text())
            if self.results["facts"] != facts:
                raise SystemExit(f"{self.file} is of another job: move it or give another --out")
        self.results = {"agreement": {}, "tuned": {}, "rounds": {}, **self.results}
        self.results |= {"facts": facts, "failures": {}}

    @property
    def file(self) -> Path:
        return self.out / "results.json"

    def attempt(self, label: str, step: Callable[[], object]) -> None:
        """Do a step; note and say a failure, and keep the results so far."""
        print(f"{label} ...", flush=True)
        try:
            step()
        except (PeerError, subprocess.CalledProcessError, OSError) as error:
            self.results["failures"][label] = str(error)
            print(f"FAILED {label}: {error}", flush=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1))
        part.replace(self.file)

    def call(self, peer: str, action: str, variant: str = "", **given: object) -> dict[str, Any]:
        """Return the answer of one action, done by a peer in a process of its own.

        Raises:
            PeerError: If it fails or takes longer than ``--limit``.
        """
        label = "-".join(filter(None, (peer, action, variant)))
        answer = self.out / "answers" / f"{label}.json"
        answer.parent.mkdir(exist_ok=True)
        answer.unlink(missing_ok=True)
        name = peer if peer in {"ours", "less_as_published"} else f"{peer}_peer"
        command = [str(self.pythons[peer]), str(HERE / f"{name}.py"), action, str(answer)]
        command += ["--variant", variant] if variant else []
        for option, value in given.items():
            command += [f"--{option}", str(value) if option == "job" else json.dumps(value)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"))
        environment = {
            **os.environ,
            **dict.fromkeys(threads, str(self.options.threads)),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(SOURCE) if peer == "ours" else "",
        }
        log = answer.with_suffix(".log")
        with log.open("w") as stream:
            try:
                done = subprocess.run(
                    command, env=environment, stdout=stream, stderr=stream, cwd=answer.parent,
                    timeout=self.options.limit, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise PeerError(f"took more than {self.options.limit} s") from error
        if done.returncode or not answer.is_file():
            lines = [line for line in log.read_text().splitlines() if line.strip()]
            raise PeerError(f"{(lines or ['no output'])[-1]} (more in {log})")
        return dict(json.loads(answer.read_text()))

    def install(self, peer: str) -> None:
        """Make a peer's environment and ask what it can do."""
        if peer != "ours":
            self.pythons[peer] = prepare(peer, self.options.envs.expanduser().resolve())
        self.variants[peer] = self.call(peer, "list")

    def wanted(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield peer, variant and what it is, for all that were asked for."""
        for named in self.options.peers:
            peer, _, only = named.partition(":")
            for variant, facts in self.variants.get(peer, {}).items():
                if variant == only if only else not facts["asked"]:
                    yield peer, variant, facts

    def check(self, peer: str, variant: str, rows: str) -> None:
        """Compare a variant's rows on a few sentences with ours, computed on in float64."""
        job = Job.read(self.out / "job/check")
        found = []
        for who, which in (("ours", "gradients"), (peer, variant)):
            self.call(who, "check", which, job=job.folder)
            saved = self.out / f"answers/{who}-check-{which}.safetensors"
            found.append(load_file(saved)["rows"])
        vectors = {
            name: job.vector(name) for name in ("probe", "probe_gradient", "exp_avg", "exp_avg_sq")
        }
        agreement = departure(rows, found[1], expected(rows, found[0], vectors))
        self.results["agreement"][f"{peer} {variant}"] = agreement
        print(f"  {agreement}")

    def tune(self, peer: str, variant: str, settings: list[dict[str, Any]]) -> None:
        """Find the fastest setting."""
        seconds = [0.0]
        if len(settings) > 1:
            seconds = self.call(peer, "tune", variant, job=self.out / "job")["seconds"]
        best = settings[seconds.index(min(seconds))]
        tried = [{**s, "seconds": t} for s, t in zip(settings, seconds, strict=True)]
        self.results["tuned"][f"{peer} {variant}"] = {"best": best, "tried": tried}
        print(f"  {best}")

    def measure(self, number: int, peer: str, variant: str, ours: str) -> None:
        """Measure ours and the peer one after the other, in turn who goes first."""
        both = [("ours", ours), (peer, variant)]
        found = {}
        for who, which in both if number % 2 else both[::-1]:
            setting = self.results["tuned"][f"{who} {which}"]["best"]
            given = {"job": self.out / "job", "setting": setting}
            found[who] = self.call(who, "measure", which, **given)
            found[who]["rate"] = found[who]["tokens"] / found[who]["seconds"]
        self.results["rounds"].setdefault(f"{peer} {variant}", {})[str(number)] = {
            "ours": found["ours"],
            "peer": found[peer],
            "load": os.getloadavg()[0],
        }
        print(f"  {found[peer]['rate']:.1f} tok/s, ours {found['ours']['rate']:.1f}")

    def table(self) -> None:
        """Print what is known."""
        print(
            f"\n{'peer and variant':<34}{'tok/s':>8}{'ours':>8}  {'ours / peer':<22}"
            f"{'MiB':>6}{'ours':>6}  {'agreement':<24}setting"
        )
        for label, agreement in self.results["agreement"].items():
            setting = self.results["tuned"].get(label, {}).get("best", "")
            rounds = list(self.results["rounds"].get(label, {}).values())
            line = " " * 58
            if rounds:
                ours, peer = ([r[who]["rate"] for r in rounds] for who in ("ours", "peer"))
                ratios = [a / b for a, b in zip(ours, peer, strict=True)]
                shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                peaks = [max(r[who]["peak_mib"] for r in rounds) for who in ("peer", "ours")]
                line = f"{statistics.median(peer):8.1f}{statistics.median(ours):8.1f}  {shown:<22}"
                line += f"{peaks[0]:6.0f}{peaks[1]:6.0f}  "
            print(f"{label:<34}{line}{agreement:<24}{json.dumps(setting)}")
        for label, error in self.results["failures"].items():
            print(f"FAILED {label}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default="all", help="all, or some of NAME and NAME:VARIANT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--projection", type=int, default=8192)
    parser.add_argument("--check-examples", type=int, default=6)
    parser.add_argument("--tiny", action="store_true", help="check values on a tiny model, no times")
    parser.add_argument("--envs", type=Path, default=Path("~/.cache/biasdiff/peers"))
    parser.add_argument("--out", type=Path, default=None, help="default build/peers")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one process")
    options = parser.parse_args()
    options.peers = list(ENVIRONMENTS) if options.peers == "all" else options.peers.split(",")
    unknown = {named.partition(":")[0] for named in options.peers} - set(ENVIRONMENTS)
    if unknown:
        parser.error(f"no peer {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
    options.out = options.out or HERE.parents[1] / "build" / ("peers-tiny" if options.tiny else "peers")

    bench = Bench(options)
    bench.start()
    for peer in ("ours", *dict.fromkeys(named.partition(":")[0] for named in options.peers)):
        bench.attempt(f"environment of {peer}", lambda peer=peer: bench.install(peer))
    mine = [("ours", name, facts) for name, facts in bench.variants["ours"].items()]
    everything = [*mine, *bench.wanted()]
    for peer, variant, facts in everything:
        label = f"{peer} {variant}"
        if label not in bench.results["agreement"] and (options.tiny or not facts["slow"]):
            bench.attempt(f"check of {label}", lambda: bench.check(peer, variant, facts["rows"]))
    if not options.tiny:
        times(bench, everything)
    bench.table()
    return 1 if bench.results["failures"] else 0


def times(bench: Bench, everything: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Tune everything once and measure it in all rounds that are not there yet."""
    for peer, variant, facts in everything:
        if f"{peer} {variant}" not in bench.results["tuned"]:
            settings = facts["settings"]
            step = lambda: bench.tune(peer, variant, settings)  # noqa: E731
            bench.attempt(f"settings of {peer} {variant}", step)
    for number in range(1, bench.options.rounds + 1):
        for peer, variant, facts in everything:
            label, ours = f"{peer} {variant}", OURS.get(facts["rows"], "scores")
            known = {label, f"ours {ours}"} <= set(bench.results["tuned"])
            done = str(number) in bench.results["rounds"].get(label, {})
            if peer != "ours" and known and not done:
                step = lambda: bench.measure(number, peer, variant, ours)  # noqa: E731
                bench.attempt(f"round {number}: {label}", step)


if __name__ == "__main__":
    sys.exit(main())
