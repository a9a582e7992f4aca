"""Linear datamodeling score: do influence scores rank what training on subsets does to the bias?

Scores of every estimator are computed once, at a model trained on a whole train set: half
stereotypes told of one group, half facts. Then adapters are trained on random halves of it, all
from the same start, and the margin (log-likelihood of the stereotype minus that of its twin) is
measured on the probe pairs that the scores were computed with. What an estimator predicts for a
half is the sum of its examples' scores; its LDS is Spearman's correlation, over the halves, of
predicted and measured.

    python benchmarks/lds.py                     # goes on where it was; --hours limits the time
    python benchmarks/lds.py --report            # the table, at any time

Everything lies under --folder, the measured margins of each half in a file of their own. Numbers
of subsets, repeats, hours and threads may change between calls; other settings may not.

Beside the margin over whole sentences the table has: the margin per token; `by pair`, the mean over
probe pairs of the LDS towards that pair alone, for estimators whose scores know probes apart;
`beyond the count`, the rank correlation with the margin when the number of biased examples in the
half is held constant; and `stereotypes`, the LDS towards the log-likelihood per token of the
stereotype sentences alone, which is what estimators that know no twins predict. The row `truth` is
that number of biased examples. Scores towards every pair take memory: about six times the adapter's
weights times the pairs, 4 GB by default; --no-by-pair saves it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from biasdiff.attribution.estimator import GradientEstimator
from biasdiff.attribution.registry import ESTIMATORS
from biasdiff.config import Config, config_from
from biasdiff.data.probe import ProbePair, load_probe_pairs, save_probe_pairs
from biasdiff.data.records import load_train_set
from biasdiff.errors import ArtifactError, BiasdiffError, ConfigError
from biasdiff.evaluation.benchmark import Subject
from biasdiff.evaluation.stereotype_preference import score_pairs
from biasdiff.functional.datamodeling import (
    Correlation,
    Floats,
    attainable_correlation,
    datamodeling_score,
    partial_rank_correlation,
    predicted_sums,
    random_halves,
    rank_correlation,
    resample_counts,
)
from biasdiff.models.loading import resolve_model
from biasdiff.models.lora import add_adapter, load_adapter, lora_parameters
from biasdiff.pipeline.artifacts import read_json, write_json
from biasdiff.pipeline.attribute import attribute, scores_file
from biasdiff.pipeline.base_model import find_adapter, load_base
from biasdiff.pipeline.mixture import FILES, plan_data
from biasdiff.pipeline.warmup import lora_settings, training_settings, warmup
from biasdiff.progress import configure, say, task
from biasdiff.training.warmup import warm_up

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RESAMPLES = 2000
COLUMNS = ("margin", "per token", "by pair", "beyond the count", "stereotypes")
KEPT = ("sum_more", "sum_less", "mean_more", "mean_less")
PAIR = "pair-"


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    configure(quiet=True)
    try:
        if not options.report:
            _run(options)
        print(report(options.folder))
    except BiasdiffError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/lds"))
    add("--report", action="store_true", help="print the table and do no work")
    add("--hours", type=float, default=3.0)
    add("--subsets", type=int, default=100)
    add("--repeats", type=int, default=1, help="trainings of each subset, in other orders")
    add("--threads", type=int, default=2)
    add("--model", default="smollm2-135m", help="alias, folder, .gguf file or hub id")
    add("--size", type=int, default=120, help="train examples, half of them biased")
    add("--probe-pairs", type=int, default=60)
    add("--epochs", type=int, default=2)
    add("--batch-size", type=int, default=8)
    add("--learning-rate", type=float, default=1e-3)
    add("--loss-average", choices=["token", "example"], default="token")
    add("--rank", type=int, default=8)
    add("--targets", nargs="*", default=LINEAR, help="maps to adapt; none for the default")
    add("--max-tokens", type=int, default=384)
    add("--by-pair", action=argparse.BooleanOptionalAction, default=True)
    add("--seed", type=int, default=0)
    return parser


def _config(options: argparse.Namespace) -> Config:
    return config_from(
        {
            "seed": options.seed,
            "model": {"name": options.model, "max_tokens": options.max_tokens},
            "data": {
                "size": options.size,
                "biased_share": 0.5,
                "probe_pairs": options.probe_pairs,
                "evaluation_pairs": 1,
                "held_out_texts": 1,
                "one_sided": True,
            },
            "lora": {
                "rank": options.rank,
                "alpha": 2 * options.rank,
                "dropout": 0.0,
                "targets": list(options.targets),
            },
            "warmup": {
                "epochs": options.epochs,
                "batch_size": options.batch_size,
                "learning_rate": options.learning_rate,
                "loss_average": options.loss_average,
            },
        }
    )


def _without_settings() -> list[str]:
    """Return the estimators that need no further setting."""
    found = []
    for name, estimator in ESTIMATORS.items():
        try:
            estimator.check({})
        except ConfigError:
            continue
        found.append(name)
    return found


def _run(options: argparse.Namespace) -> None:
    deadline = time.monotonic() + 3600 * options.hours
    folder, config = options.folder, _config(options)
    folder.mkdir(parents=True, exist_ok=True)
    model = resolve_model(options.model)
    _claim(
        folder / "settings.json",
        {
            "config": config.model_dump(mode="json"),
            "model": model.fingerprint,
            "by_pair": options.by_pair,
            "estimators": _without_settings(),
        },
    )
    _compute_scores(folder, config, by_pair=options.by_pair)
    bench = _open_bench(folder, config)
    members = random_halves(options.size, options.subsets, seed=options.seed)
    jobs = [(r, s) for r in range(options.repeats) for s in range(options.subsets)]
    todo = [(r, s) for r, s in jobs if not _file(folder, r, s).exists()]
    taken: list[float] = []
    with task("subsets", len(jobs)) as progress:
        progress.skip(len(jobs) - len(todo))
        for repeat, number in todo:
            if time.monotonic() + (sum(taken) / len(taken) if taken else 0) > deadline:
                break
            began = time.perf_counter()
            rows = np.flatnonzero(members[number]).tolist()
            margins = bench.margins_after(rows, repeat)
            taken.append(time.perf_counter() - began)
            record = {"rows": rows, "repeat": repeat, "seconds": taken[-1], "pairs": margins}
            write_json(_file(folder, repeat, number), record)
            progress.advance()
    left = len(todo) - len(taken)
    say(f"{len(jobs) - left} of {len(jobs)} trainings are done, {len(taken)} of them now")
    if left:
        say(f"stopped after --hours {options.hours:g}; the same command goes on")


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Write down what the folder is made from, or refuse one that is made from something else."""
    if path.exists() and (found := read_json(path)) != settings:
        before, now = (pd.json_normalize(s).iloc[0].to_dict() for s in (found, settings))
        names = [n for n in dict.fromkeys([*before, *now]) if before.get(n) != now.get(n)]
        changed = "; ".join(f"{n}: {before.get(n)} -> {now.get(n)}" for n in names)
        raise ArtifactError(
            f"{path.parent} was made from other settings ({changed})",
            expected="the settings it was made from",
            remedy="repeat them, or name another --folder",
        )
    write_json(path, settings)


def _file(folder: Path, repeat: int, number: int) -> Path:
    return folder / "subsets" / f"{number:04d}-{repeat}.json"


def _compute_scores(folder: Path, config: Config, *, by_pair: bool) -> None:
    """Train on the whole train set and score it, at the last checkpoint and over all."""
    data = plan_data(folder / "data", config=config).make()
    train, probe = data / FILES["train"], data / FILES["probe"]
    adapter = warmup(config.model.name, train, folder / "warmup", config=config)
    names = _without_settings()
    gradient = [n for n in names if isinstance(ESTIMATORS[n], GradientEstimator)]
    single = folder / "probe_by_pair.csv"
    if by_pair:  # every pair is a bias type of its own, so that scores by type are scores by pair
        pairs = load_probe_pairs(probe)
        work = single.with_suffix(".tmp")
        named = [replace(p, bias_type=f"{PAIR}{i:04d}") for i, p in enumerate(pairs)]
        save_probe_pairs(named, work)
        work.rename(single)
    for which, chosen, pairs_file in (
        ("last", names, single if by_pair else probe),
        ("all", gradient, probe),
    ):
        section = config.attribution.model_copy(
            update={"estimator": chosen[0], "also": tuple(chosen[1:]), "checkpoints": which}
        )
        attribute(
            config.model.name,
            train,
            pairs_file,
            folder / f"scores-{which}",
            adapter=adapter,
            config=config.model_copy(update={"attribution": section}),
        )


@dataclass(frozen=True)
class Bench:
    """A function from rows of the train set, and the number of the repeat, to measured margins."""

    margins_after: Callable[[list[int], int], dict[str, list[float]]]


def _open_bench(folder: Path, config: Config) -> Bench:
    """Load the model; measure it untrained and trained on everything, unless that is done."""
    examples = load_train_set(folder / "data" / FILES["train"])
    pairs = load_probe_pairs(folder / "data" / FILES["probe"])
    base = load_base(resolve_model(config.model.name), config.model)
    encodings = base.encode(examples, strict=False)
    (folder / "subsets").mkdir(exist_ok=True)

    def measured(model: Any) -> dict[str, list[float]]:
        subject = Subject(model, base.tokenizer, base.max_length, config.model.max_tokens)
        return _margins(subject, pairs)

    for name in ("base", "full"):
        if (folder / f"{name}.json").exists():
            continue
        model = base.model
        if name == "full":
            model = load_adapter(base.model, find_adapter(folder / "warmup"))
        write_json(folder / f"{name}.json", {"pairs": measured(model)})
        if name == "full":
            model.unload()
    adapted = add_adapter(base.model, lora_settings(config.lora), seed=config.seed)
    start = {name: weight.detach().clone() for name, weight in lora_parameters(adapted)}

    def margins_after(rows: list[int], repeat: int) -> dict[str, list[float]]:
        with torch.no_grad():
            for name, weight in lora_parameters(adapted):
                weight.copy_(start[name])
        work = folder / "training"
        shutil.rmtree(work, ignore_errors=True)  # of one that was interrupted
        warm_up(
            adapted,
            [encodings[row] for row in rows],
            [examples[row].id for row in rows],
            training_settings(config.warmup, seed=config.seed + repeat),
            work,
            description="a subset",
        )
        shutil.rmtree(work)
        return measured(adapted)

    return Bench(margins_after)


def _margins(subject: Subject, pairs: list[ProbePair]) -> dict[str, list[float]]:
    frame = score_pairs(subject, pairs, name="margins")
    return {name: frame[name].tolist() for name in KEPT}


# -- report


@dataclass(frozen=True)
class Measured:
    """What was measured after training on each of s subsets, the mean over repeats.

    Attributes:
        members: [s, n].
        pairs: Each of `KEPT`, [s, m].
        repeated: Mean margins of the first and the second repeat of subsets that have two, [2, t].
        repeats: Trainings per subset, on average.
    """

    members: np.ndarray
    pairs: Mapping[str, Floats]
    repeated: Floats
    repeats: float


def _read_measured(folder: Path, size: int) -> Measured:
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((folder / "subsets").glob("*.json")):
        found.setdefault(file.stem.partition("-")[0], []).append(read_json(file))
    members = np.zeros((len(found), size), dtype=np.bool_)
    for row, records in zip(members, found.values(), strict=True):
        row[records[0]["rows"]] = True
    pairs = {
        name: np.array([np.mean([r["pairs"][name] for r in rs], axis=0) for rs in found.values()])
        for name in KEPT
    }
    twice = [
        [np.mean(np.subtract(r["pairs"]["sum_more"], r["pairs"]["sum_less"])) for r in rs[:2]]
        for rs in found.values()
        if len(rs) > 1
    ]
    counts = [len(rs) for rs in found.values()]
    repeats = sum(counts) / len(counts) if counts else 0.0
    return Measured(members, pairs, np.array(twice).reshape(-1, 2).T, repeats)


def _tables(folder: Path, estimators: list[str]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield estimator, checkpoints and scores, as far as they are computed."""
    gradient = [n for n in estimators if isinstance(ESTIMATORS[n], GradientEstimator)]
    for which, names in (("last", estimators), ("all", gradient)):
        for name in names:
            file = folder / f"scores-{which}" / scores_file(name, names[0])
            if file.exists():
                yield name, which, pd.read_parquet(file)


def report(folder: Path) -> str:
    """Return the table as Markdown, from whatever is finished."""
    settings = read_json(folder / "settings.json")
    size = settings["config"]["data"]["size"]
    measured = _read_measured(folder, size)
    subsets = len(measured.members)
    if subsets < 3:
        return f"{subsets} subsets are measured; a correlation needs 3"
    pairs = measured.pairs
    targets = {
        "sum": pairs["sum_more"] - pairs["sum_less"],
        "mean": pairs["mean_more"] - pairs["mean_less"],
        "stereotypes": pairs["mean_more"],
    }
    counts = resample_counts(subsets, resamples=RESAMPLES)
    examples = load_train_set(folder / "data" / FILES["train"])
    truth = np.array([float(e.is_bias or 0) for e in examples])
    biased = predicted_sums(measured.members, truth)
    lines = [
        f"{subsets} subsets of {size // 2} of {size} examples, {targets['sum'].shape[1]} probe "
        f"pairs, {settings['config']['warmup']['epochs']} epochs; 95 % bootstrap intervals over "
        "subsets",
        *_levels(folder, targets["sum"].mean(1)),
        *_ceiling(measured),
        "",
        f"| estimator | checkpoints | {' | '.join(COLUMNS)} |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    rows = [("truth", "", pd.DataFrame({"score": truth}))]
    rows += list(_tables(folder, settings["estimators"]))
    for name, which, table in rows:
        found = _row(table, measured.members, targets, biased, counts)
        shown = " | ".join(_shown(found.get(column)) for column in COLUMNS)
        lines.append(f"| {name} | {which} | {shown} |")
    if len(rows) == 1:
        lines.append("(no scores yet)")
    return "\n".join(lines)


def _row(
    table: pd.DataFrame,
    members: np.ndarray,
    targets: Mapping[str, Floats],
    biased: Floats,
    counts: Floats,
) -> dict[str, Correlation]:
    predicted = predicted_sums(members, table["score"].to_numpy(dtype=np.float64))
    margin = targets["sum"].mean(1)
    found = {
        "margin": datamodeling_score(predicted, margin, counts),
        "per token": datamodeling_score(predicted, targets["mean"].mean(1), counts),
        "stereotypes": datamodeling_score(predicted, targets["stereotypes"].mean(1), counts),
        "beyond the count": partial_rank_correlation(predicted, margin, biased, counts),
    }
    single = sorted(c for c in table.columns if c.startswith(f"score_{PAIR}"))
    if single:
        towards = predicted_sums(members, table[single].to_numpy(dtype=np.float64))
        found["by pair"] = datamodeling_score(towards, targets["sum"], counts)
    return found


def _shown(found: Correlation | None) -> str:
    if found is None or np.isnan(found.value):
        return "–"
    low, high = found.interval
    return f"{found.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _levels(folder: Path, margins: Floats) -> Iterator[str]:
    """Say how far subsets lie apart, beside what training does at all."""
    known = {}
    for name in ("base", "full"):
        if (folder / f"{name}.json").exists():
            kept = read_json(folder / f"{name}.json")["pairs"]
            known[name] = float(np.mean(np.subtract(kept["sum_more"], kept["sum_less"])))
    levels = ", ".join(f"{name} {value:+.3f}" for name, value in known.items())
    yield (
        f"mean margin in nats: {levels}; subsets {margins.mean():+.3f}, standard deviation "
        f"{margins.std(ddof=1):.3f}"
    )


def _ceiling(measured: Measured) -> Iterator[str]:
    if measured.repeated.shape[1] < 3:
        return
    first, second = measured.repeated
    reliability = rank_correlation(
        first, second, resample_counts(len(first), key=(1,), resamples=RESAMPLES)
    )
    ceiling = attainable_correlation(reliability.value, max(1, round(measured.repeats)))
    yield (
        f"two trainings of a subset in other orders: {_shown(reliability)} over {len(first)} "
        f"subsets; a perfect prediction could reach about {ceiling:.2f} with "
        f"{measured.repeats:.1f} trainings each"
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
