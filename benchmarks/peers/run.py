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

from environments import ENVIRONMENTS, SHARED, installed, prepare
from expected import departure, expected
from job_files import tiny_model, write_job
from peer import Job
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"


OURS = {
    "gradients": ("gradients",),
    "cosines": ("scores",),
    "dots": ("scores",),
    "less": ("less",),
    "adam": ("adam-scores",),
    "features": ("sparse", "scores"),
    "dense-features": ("dense", "sparse", "scores"),
    "less-features": ("less-dense", "less-sparse", "less"),
}
"""Our variants beside each kind of row: first of the same kind, then what does without it."""


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
        packages = {peer: e.package for peer, e in ENVIRONMENTS.items()}
        facts = {"job": job, "versions": {name: installed(name) for name in SHARED} | packages}
        if self.file.is_file():
            self.results = json.loads(self.file.read_text())
            if self.results["facts"] != facts:
                raise SystemExit(f"{self.file} is of another job: move it or give another --out")
        self.results = {"agreement": {}, "tuned": {}, "rounds": {}, **self.results}
        self.results |= {"facts": facts, "failures": {}}
        git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
        revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        self.results.setdefault("revisions", [])
        if revision not in self.results["revisions"]:
            self.results["revisions"].append(revision)

    @property
    def file(self) -> Path:
        """Where results are kept."""
        return self.out / "results.json"

    def attempt(self, label: str, step: Callable[..., object], *arguments: object) -> None:
        """Do a step; note and say a failure, and keep the results so far."""
        print(f"{label} ...", flush=True)
        try:
            step(*arguments)
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
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
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

    def measure(self, number: int, peer: str, variant: str, ours: tuple[str, ...]) -> None:
        """Measure a peer and ours one after the other, in turn who goes first."""
        everyone = [(peer, variant), *(("ours", which) for which in ours)]
        found: dict[str, dict[str, Any]] = {}
        for who, which in everyone[:: 1 if number % 2 else -1]:
            setting = self.results["tuned"][f"{who} {which}"]["best"]
            answer = self.call(who, "measure", which, job=self.out / "job", setting=setting)
            answer["rate"] = answer["tokens"] / answer["seconds"]
            found[f"{who} {which}"] = answer | {"load": os.getloadavg()[0]}
        self.results["rounds"].setdefault(f"{peer} {variant}", {})[str(number)] = found
        print("  " + ", ".join(f"{name} {a['rate']:.1f} tok/s" for name, a in found.items()))

    def table(self) -> None:
        """Print what is known: rates, memory, and how often ours goes into a peer's time."""
        print(f"\n{'':<34}{'tok/s':>9}{'MiB':>7}  {'ours faster':<26}{'agreement':<24}setting")
        agreement, tuned = self.results["agreement"], self.results["tuned"]
        for label in dict.fromkeys([*agreement, *tuned]):
            rounds = list(self.results["rounds"].get(label, {}).values())
            setting = json.dumps(tuned[label]["best"]) if label in tuned else ""
            first = _figures(rounds, label, label) if rounds else " " * 44
            print(f"{label:<34}{first}{agreement.get(label, ''):<24}{setting}")
            for name in rounds[0] if rounds else ():
                if name != label:
                    print(f"  {name:<32}{_figures(rounds, name, label)}")
        for label, error in self.results["failures"].items():
            print(f"FAILED {label}: {error}")


def _figures(rounds: list[dict[str, Any]], name: str, peer: str) -> str:
    """Return median rate, peak memory, and the median and range of the ratios of the rounds."""
    rates = [r[name]["rate"] for r in rounds]
    ratios = [rate / r[peer]["rate"] for rate, r in zip(rates, rounds, strict=True)]
    shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    peak = max(r[name]["peak_mib"] for r in rounds)
    return f"{statistics.median(rates):9.1f}{peak:7.0f}  {'' if name == peer else shown:<26}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default="all", help="all, or some of NAME and NAME:VARIANT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--projection", type=int, default=8192)
    parser.add_argument("--check-examples", type=int, default=12)
    parser.add_argument("--tiny", action="store_true", help="values of a tiny model, no times")
    parser.add_argument("--envs", type=Path, default=Path("~/.cache/biasdiff/peers"))
    parser.add_argument("--out", type=Path, default=None, help="default build/peers")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for one process")
    options = parser.parse_args()
    options.peers = list(ENVIRONMENTS) if options.peers == "all" else options.peers.split(",")
    unknown = {named.partition(":")[0] for named in options.peers} - set(ENVIRONMENTS)
    if unknown:
        parser.error(f"no peer {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
    kind = "peers-tiny" if options.tiny else "peers"
    options.out = options.out or HERE.parents[1] / "build" / kind

    bench = Bench(options)
    bench.start()
    for peer in ("ours", *dict.fromkeys(named.partition(":")[0] for named in options.peers)):
        bench.attempt(f"environment of {peer}", bench.install, peer)
    mine = [("ours", name, facts) for name, facts in bench.variants["ours"].items()]
    everything = [*mine, *bench.wanted()]
    for peer, variant, facts in everything:
        label = f"{peer} {variant}"
        if label not in bench.results["agreement"] and (options.tiny or not facts["slow"]):
            bench.attempt(f"check of {label}", bench.check, peer, variant, facts["rows"])
    if not options.tiny:
        times(bench, everything)
    bench.table()
    return 1 if bench.results["failures"] else 0


def times(bench: Bench, everything: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Tune everything once and measure it in all rounds that are not there yet."""
    for peer, variant, facts in everything:
        if f"{peer} {variant}" not in bench.results["tuned"]:
            label = f"settings of {peer} {variant}"
            bench.attempt(label, bench.tune, peer, variant, facts["settings"])
    tuned = bench.results["tuned"]
    for number in range(1, bench.options.rounds + 1):
        for peer, variant, facts in everything:
            label = f"{peer} {variant}"
            ours = tuple(w for w in OURS.get(facts["rows"], ()) if f"ours {w}" in tuned)
            done = str(number) in bench.results["rounds"].get(label, {})
            if peer != "ours" and label in tuned and ours and not done:
                step = f"round {number}: {label}"
                bench.attempt(step, bench.measure, number, peer, variant, ours)


if __name__ == "__main__":
    sys.exit(main())
