"""Theorem 1 measured: does the loss on biased sentences tell how biased a model is?

The paper argues that a model's bias and its loss on probe sentences go together, and proves it for
the difference between that loss and the loss on the twins. Two readings, over models that differ:

    loss       mean loss on the probe's stereotype sentences; a lower one should mean more bias (-)
    contrast   loss on the twins minus loss on the stereotypes; a higher one should (+)

each against the margin (log-likelihood of the stereotype minus that of its twin) on OTHER pairs,
those of the validation draw, which have no stereotype in common with the probe. The models are the
base model and the checkpoints of warm-ups with several rates, seeds and shares of biased examples,
after every epoch, and any further models that are named.

    python benchmarks/theorem_1.py --out runs/theorem_1 --models FOLDER ...    # goes on
    python benchmarks/theorem_1.py --out runs/theorem_1 --report    # the table of what is finished

What was measured of each model is a file of its own. Rates, seeds, shares, further models, hours
and threads may change between calls; other settings may not. Intervals resample whole warm-ups,
since checkpoints of one resemble each other. `within warm-ups` takes each warm-up's mean off both
sides first, and so asks about the course of training alone. Between models of different tokenizers
compare sums over sentences, not means over tokens.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from biasdiff.config import Config, ModelConfig, config_from
from biasdiff.data.draws import shipped_draw
from biasdiff.data.probe import ProbePair, load_probe_pairs
from biasdiff.data.shipped_sets import one_sided_stereotypes
from biasdiff.errors import ArtifactError
from biasdiff.evaluation.benchmark import Subject
from biasdiff.evaluation.stereotype_preference import score_pairs
from biasdiff.functional.datamodeling import correlation, rank_correlation, resample_counts
from biasdiff.functional.statistics import Floats
from biasdiff.models.loading import resolve_model
from biasdiff.models.lora import load_adapter
from biasdiff.pipeline.artifacts import read_json, write_json
from biasdiff.pipeline.base_model import BaseModel, find_checkpoints, load_base
from biasdiff.pipeline.mixture import FILES, plan_data
from biasdiff.pipeline.warmup import warmup
from biasdiff.progress import configure, say, task
from experiment import exit_code
from lds import KEPT, LINEAR, claim, with_interval

FEWEST = 3
RESAMPLES = 5000
BASE = "base"
SIDES = ("probe", "other")
SETTINGS = (
    *("size", "epochs", "batch_size", "rank", "targets"),
    *("probe_pairs", "other_pairs", "one_sided", "max_tokens"),
)
"""Options that all points of a folder have in common."""
UNITS = {"sentence": "sum", "token": "mean"}
Measure = Callable[[Any, BaseModel], dict[str, Any]]


@dataclass(frozen=True)
class WarmUp:
    """One training whose checkpoints are measured."""

    rate: float
    seed: int
    share: float

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"rate-{self.rate:g}-seed-{self.seed}-share-{self.share:g}"


def main() -> int:
    options = read_options()
    torch.set_num_threads(options.threads)
    configure(quiet=True)

    def work() -> None:
        if not options.report:
            run(options)
        print(report(options.out))

    return exit_code(work)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--report", action="store_true", help="print the table and do no work")
    add("--hours", type=float, default=3.0, help="start no warm-up that would end later")
    add("--threads", type=int, default=2)
    add("--model", default=ModelConfig().name, help="that adapters are warmed up on")
    add("--models", nargs="*", default=[], help="further ones, measured as they are")
    add("--rates", type=float, nargs="*", default=[5e-4, 1e-3, 2e-3])
    add("--seeds", type=int, nargs="*", default=[0, 1])
    add("--shares", type=float, nargs="*", default=[0.5], help="of biased train examples")
    add("--size", type=int, default=240, help="train examples")
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=8)
    add("--rank", type=int, default=8)
    add("--targets", default=LINEAR, help="linear maps a,b; '' for the package's default")
    add("--probe-pairs", type=int, default=90)
    add("--other-pairs", type=int, default=None, help="of the validation draw; default: all")
    add("--one-sided", action=argparse.BooleanOptionalAction, default=True)
    add("--max-tokens", type=int, default=ModelConfig().max_tokens)
    return parser.parse_args()


def config_of(options: argparse.Namespace, warm_up: WarmUp) -> Config:
    return config_from(
        {
            "seed": warm_up.seed,
            "model": {"name": options.model, "max_tokens": options.max_tokens},
            "data": {
                "size": options.size,
                "biased_share": warm_up.share,
                "probe_pairs": options.probe_pairs,
                "evaluation_pairs": 1,
                "held_out_texts": 1,
                "one_sided": options.one_sided,
            },
            "lora": {
                "rank": options.rank,
                "alpha": 2 * options.rank,
                "dropout": 0.0,
                "targets": [name for name in options.targets.split(",") if name],
            },
            "warmup": {
                "epochs": options.epochs,
                "batch_size": options.batch_size,
                "learning_rate": warm_up.rate,
            },
        }
    )


def run(options: argparse.Namespace) -> None:
    """Measure what is missing: the base model, further models, then one warm-up after another."""
    deadline = time.monotonic() + 3600 * options.hours
    folder = options.out
    (folder / "points").mkdir(parents=True, exist_ok=True)
    source = resolve_model(options.model)
    settings = {name: getattr(options, name) for name in SETTINGS}
    claim(folder, settings | {"model": options.model, "fingerprint": source.fingerprint})
    config = config_of(options, WarmUp(1e-3, 0, 0.5))
    data = plan_data(folder / "data", config=config).make()
    probe = load_probe_pairs(data / FILES["probe"])
    measure = measurer(probe, other_pairs(options), options.max_tokens)
    for name in options.models:
        path = point_file(folder, "model", re.sub(r"\W+", "-", name).strip("-"))
        if not path.exists():
            base = load_base(resolve_model(name), config.model)
            write_json(path, {"kind": "model", "run": name, **measure(base.model, base)})
            del base
            gc.collect()
    base = load_base(source, config.model)
    if not (path := point_file(folder, "checkpoint", BASE)).exists():
        write_json(path, {"kind": "checkpoint", "run": BASE, **measure(base.model, base)})
    combinations = itertools.product(options.shares, options.seeds, options.rates)
    warm_ups = [WarmUp(rate, seed, share) for share, seed, rate in combinations]
    todo = [w for w in warm_ups if not all(p.exists() for p in checkpoint_files(options, w))]
    taken: list[float] = []
    with task("warm-ups", len(warm_ups)) as progress:
        progress.skip(len(warm_ups) - len(todo))
        for warm_up in todo:
            if time.monotonic() + (sum(taken) / len(taken) if taken else 0) > deadline:
                break
            began = time.monotonic()
            measure_checkpoints(options, warm_up, base, measure)
            taken.append(time.monotonic() - began)
            progress.advance()
    left = len(todo) - len(taken)
    say(f"{len(warm_ups) - left} of {len(warm_ups)} warm-ups are done, {len(taken)} of them now")
    if left:
        say(f"stopped after {options.hours:g} hours; the same command goes on from here")


def other_pairs(options: argparse.Namespace) -> list[ProbePair]:
    """Return the pairs that bias is measured on; the test draw is left for final figures."""
    names = one_sided_stereotypes()
    pairs = shipped_draw("validation")
    if options.one_sided:
        pairs = [pair for pair in pairs if pair.stereotype_id in names]
    return pairs[: options.other_pairs]


def measurer(probe: Sequence[ProbePair], other: Sequence[ProbePair], max_tokens: int) -> Measure:
    def measure(model: Any, base: BaseModel) -> dict[str, Any]:
        subject = Subject(model, base.tokenizer, base.max_length, max_tokens)
        found = {}
        for side, pairs in zip(SIDES, (probe, other), strict=True):
            frame = score_pairs(subject, pairs, name=f"{side} pairs")
            found[side] = {name: frame[name].tolist() for name in KEPT}
        return found

    return measure


def point_file(folder: Path, kind: str, name: str) -> Path:
    return folder / "points" / f"{kind}-{name}.json"


def checkpoint_files(options: argparse.Namespace, warm_up: WarmUp) -> list[Path]:
    names = [f"{warm_up.name}-epoch-{epoch}" for epoch in range(1, options.epochs + 1)]
    return [point_file(options.out, "checkpoint", name) for name in names]


def measure_checkpoints(
    options: argparse.Namespace, warm_up: WarmUp, base: BaseModel, measure: Measure
) -> None:
    """Train one adapter, measure it after every epoch, and drop it."""
    folder, config = options.out, config_of(options, warm_up)
    drawn = config.model_copy(update={"seed": 0})  # seeds differ in training, not in data
    data = plan_data(folder / f"data-share-{warm_up.share:g}", config=drawn).make()
    place = folder / "warmups" / warm_up.name
    warmup(options.model, data / FILES["train"], place, config=config)
    files = checkpoint_files(options, warm_up)
    for epoch, (path, checkpoint) in enumerate(zip(files, find_checkpoints(place), strict=True), 1):
        if path.exists():
            continue
        model = load_adapter(base.model, checkpoint)
        found = measure(model, base)
        model.unload()
        record = {"kind": "checkpoint", "run": warm_up.name, **vars(warm_up), "epoch": epoch}
        write_json(path, record | found)
    shutil.rmtree(place)


# -- report


def report(folder: Path) -> str:
    """Return what is finished as a Markdown table.

    Raises:
        ArtifactError: If nothing was begun in the folder.
    """
    if not (folder / "points").is_dir():
        raise ArtifactError(
            f"{folder} holds no points",
            expected="a folder that this benchmark has begun to fill",
            remedy="run it without --report first",
        )
    points = [read_json(path) for path in sorted((folder / "points").glob("*.json"))]
    lines = [
        "| over | models | reading | a | Pearson | Spearman |",
        "|---|---|---|---|---|---|",
    ]
    for label, chosen, within in groups(points):
        for reading, unit, x in readings(chosen):
            y = margin(chosen, "other", UNITS[unit])
            lines.append(row(label, chosen, reading, unit, *centred(chosen, x, y, within)))
    if len(lines) == 2:
        return f"{len(points)} models are measured, {FEWEST} of a kind are needed"
    lines += ["", *(line for line in courses(points))]
    return "\n".join(lines)


def groups(
    points: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, list[Mapping[str, Any]], bool]]:
    """Yield what is correlated over: a label, the points, and whether within warm-ups."""
    checkpoints = [p for p in points if p["kind"] == "checkpoint"]
    trained = [p for p in checkpoints if p["run"] != BASE]
    models = [p for p in points if p["kind"] == "model" or p["run"] == BASE]
    for label, chosen, within in (
        ("checkpoints", checkpoints, False),
        ("within warm-ups", trained, True),
        ("models", models, False),
    ):
        if len(chosen) >= FEWEST:
            yield label, chosen, within


def readings(points: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Floats]]:
    """Yield both readings of the theorem in both units, one value a point."""
    for unit, key in UNITS.items():
        yield "loss (−)", unit, np.array([-np.mean(p["probe"][f"{key}_more"]) for p in points])
        yield "contrast (+)", unit, margin(points, "probe", key)


def margin(points: Sequence[Mapping[str, Any]], side: str, key: str) -> Floats:
    """Return the mean log-likelihood of stereotypes minus that of twins, one value a point."""
    pairs = [p[side] for p in points]
    return np.array([np.mean(np.subtract(p[f"{key}_more"], p[f"{key}_less"])) for p in pairs])


def centred(
    points: Sequence[Mapping[str, Any]], x: Floats, y: Floats, within: bool
) -> tuple[Floats, Floats]:
    """Return both sides, each warm-up's mean taken off where that is asked for."""
    if not within:
        return x, y
    names = np.array([p["run"] for p in points])
    means = [np.array([side[names == name].mean() for name in names]) for side in (x, y)]
    return x - means[0], y - means[1]


def row(
    label: str, points: Sequence[Mapping[str, Any]], reading: str, unit: str, x: Floats, y: Floats
) -> str:
    runs = [str(p["run"]) for p in points]
    counts = resample_counts(len(points), clusters=runs, resamples=RESAMPLES)
    found = [with_interval(measure(x, y, counts)) for measure in (correlation, rank_correlation)]
    number = f"{len(points)} of {len(set(runs))} runs" if label != "models" else str(len(points))
    return f"| {label} | {number} | {reading} | {unit} | {found[0]} | {found[1]} |"


def courses(points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the values themselves, in nats a sentence."""
    yield "| model | epoch | loss | contrast | margin on other pairs |"
    yield "|---|---|---|---|---|"
    losses, contrasts = (x for _, unit, x in readings(points) if unit == "sentence")
    margins = margin(points, "other", "sum")
    for p, *values in zip(points, losses, contrasts, margins, strict=True):
        shown = " | ".join(f"{value:+.3f}" for value in values)
        yield f"| {p['run']} | {p.get('epoch', '')} | {shown} |"


if __name__ == "__main__":
    sys.exit(main())
