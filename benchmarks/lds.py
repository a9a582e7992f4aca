"""Linear datamodeling score: do influence scores rank what training on subsets does to the bias?

Scores of every estimator are computed once, at a model trained on a whole train set: half
stereotypes told of one group, half facts. Then adapters are trained on random halves of it, all
from the same start, and the margin (log-likelihood of the stereotype minus that of its twin) is
measured on the probe pairs that the scores were computed with. What an estimator predicts for a
half is the sum of its examples' scores; its LDS is Spearman's correlation, over the halves, of
predicted and measured.

    python benchmarks/lds.py --out runs/lds             # goes on where it was
    python benchmarks/lds.py --out runs/lds --report    # the table of what is finished

What was measured after each training is a file of its own. Numbers of subsets, repeats, hours and
threads may change between calls; other settings may not. Scores are made anew where the list of
estimators has changed.

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
from biasdiff.config import Config, ModelConfig, config_from
from biasdiff.data.probe import load_probe_pairs, save_probe_pairs
from biasdiff.data.records import load_train_set
from biasdiff.errors import ArtifactError, ConfigError
from biasdiff.evaluation.benchmark import Subject
from biasdiff.evaluation.stereotype_preference import score_pairs
from biasdiff.functional.datamodeling import (
    Correlation,
    Members,
    attainable_correlation,
    datamodeling_score,
    partial_rank_correlation,
    predicted_sums,
    random_halves,
    rank_correlation,
    resample_counts,
)
from biasdiff.functional.statistics import Floats
from biasdiff.models.loading import resolve_model
from biasdiff.models.lora import add_adapter, load_adapter, lora_parameters
from biasdiff.pipeline.artifacts import read_json, write_json
from biasdiff.pipeline.attribute import RECORD_FILE, attribute
from biasdiff.pipeline.base_model import find_adapter, load_base
from biasdiff.pipeline.mixture import FILES, plan_data
from biasdiff.pipeline.scores import scores_file
from biasdiff.pipeline.warmup import lora_settings, training_settings, warmup
from biasdiff.progress import configure, say, task
from biasdiff.training.warmup import warm_up
from experiment import exit_code

LINEAR = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
RESAMPLES = 2000
FEWEST = 3
"""Subsets below which there is no table."""
COLUMNS = ("margin", "per token", "by pair", "beyond the count", "stereotypes")
KEPT = ("sum_more", "sum_less", "mean_more", "mean_less")
"""Log-likelihoods of each probe pair that are kept, in nats, summed and per token."""
PAIR = "pair-"
SECTIONS = {"model", "data", "lora", "warmup", "seed"}
"""What the measured margins depend on."""
Margins = dict[str, list[float]]


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
    add("--hours", type=float, default=3.0, help="start no training that would end later")
    add("--subsets", type=int, default=100)
    add("--repeats", type=int, default=1, help="trainings of each subset, in other orders")
    add("--threads", type=int, default=2)
    add("--model", default=ModelConfig().name)
    add("--size", type=int, default=120, help="train examples, half of them biased")
    add("--probe-pairs", type=int, default=60)
    add("--epochs", type=int, default=2)
    add("--batch-size", type=int, default=8)
    add("--rate", type=float, default=1e-3)
    add("--loss-average", choices=["token", "example"], default="token")
    add("--rank", type=int, default=8)
    add("--targets", default=LINEAR, help="linear maps a,b; '' for the package's default")
    add("--max-tokens", type=int, default=ModelConfig().max_tokens)
    add("--by-pair", action=argparse.BooleanOptionalAction, default=True)
    add("--seed", type=int, default=0)
    return parser.parse_args()


def config_of(options: argparse.Namespace) -> Config:
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
                "targets": [name for name in options.targets.split(",") if name],
            },
            "warmup": {
                "epochs": options.epochs,
                "batch_size": options.batch_size,
                "learning_rate": options.rate,
                "loss_average": options.loss_average,
            },
        }
    )


def run(options: argparse.Namespace) -> None:
    """Compute what is missing: scores first, then one subset after another."""
    deadline = time.monotonic() + 3600 * options.hours
    folder, config = options.out, config_of(options)
    folder.mkdir(parents=True, exist_ok=True)
    settings = config.model_dump(mode="json", include=SECTIONS)
    claim(folder, settings | {"fingerprint": resolve_model(options.model).fingerprint})
    compute_scores(folder, config, by_pair=options.by_pair)
    margins_after = open_bench(folder, config)
    members = random_halves(options.size, options.subsets, seed=options.seed)
    jobs = [(repeat, k) for repeat in range(options.repeats) for k in range(options.subsets)]
    todo = [job for job in jobs if not subset_file(folder, *job).exists()]
    taken: list[float] = []
    with task("subsets", len(jobs)) as progress:
        progress.skip(len(jobs) - len(todo))
        for repeat, k in todo:
            if time.monotonic() + (sum(taken) / len(taken) if taken else 0) > deadline:
                break
            began = time.perf_counter()
            rows = np.flatnonzero(members[k]).tolist()
            margins = margins_after(rows, repeat)
            taken.append(time.perf_counter() - began)
            record = {"rows": rows, "repeat": repeat, "seconds": taken[-1], "pairs": margins}
            write_json(subset_file(folder, repeat, k), record)
            progress.advance()
    left = len(todo) - len(taken)
    say(f"{len(jobs) - left} of {len(jobs)} trainings are done, {len(taken)} of them now")
    if left:
        say(f"stopped after {options.hours:g} hours; the same command goes on from here")


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write down what a folder is made from, or refuse one that is made from something else.

    Raises:
        ArtifactError: In the latter case; the differences are listed.
    """
    path = folder / "settings.json"
    if path.exists() and (found := read_json(path)) != settings:
        before, now = (pd.json_normalize(tree).iloc[0].to_dict() for tree in (found, settings))
        changed = [n for n in dict.fromkeys([*before, *now]) if before.get(n) != now.get(n)]
        shown = "; ".join(f"{n}: {before.get(n)} -> {now.get(n)}" for n in changed)
        raise ArtifactError(
            f"{folder} was made from other settings ({shown})",
            expected="the settings it was made from",
            remedy="repeat them, or name another folder with --out",
        )
    write_json(path, settings)


def subset_file(folder: Path, repeat: int, number: int) -> Path:
    return folder / "subsets" / f"{number:04d}-{repeat}.json"


def estimators_without_settings() -> list[str]:
    found = []
    for name, estimator in ESTIMATORS.items():
        try:
            estimator.check({})
        except ConfigError:
            continue
        found.append(name)
    return found


def compute_scores(folder: Path, config: Config, *, by_pair: bool) -> None:
    """Train on the whole train set and score it, at the last checkpoint and over all."""
    data = plan_data(folder / "data", config=config).make()
    train, probe = data / FILES["train"], data / FILES["probe"]
    adapter = warmup(config.model.name, train, folder / "warmup", config=config)
    names = estimators_without_settings()
    gradient = [n for n in names if isinstance(ESTIMATORS[n], GradientEstimator)]
    single = folder / "probe_by_pair.csv"
    if by_pair:  # every pair is a bias type of its own, so that scores by type are scores by pair
        pairs = enumerate(load_probe_pairs(probe))
        save_probe_pairs([replace(p, bias_type=f"{PAIR}{i:04d}") for i, p in pairs], single)
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
            force=True,
        )


def open_bench(folder: Path, config: Config) -> Callable[[list[int], int], Margins]:
    """Return a function from rows of the train set, and the number of the repeat, to margins.

    The model is measured untrained and trained on everything as well, unless that is done.
    """
    examples = load_train_set(folder / "data" / FILES["train"])
    pairs = load_probe_pairs(folder / "data" / FILES["probe"])
    base = load_base(resolve_model(config.model.name), config.model)
    encodings = base.encode(examples, strict=False)
    (folder / "subsets").mkdir(exist_ok=True)

    def measured(model: Any) -> Margins:
        subject = Subject(model, base.tokenizer, base.max_length, config.model.max_tokens)
        frame = score_pairs(subject, pairs, name="margins")
        return {name: frame[name].tolist() for name in KEPT}

    if not (folder / "base.json").exists():
        write_json(folder / "base.json", {"pairs": measured(base.model)})
    if not (folder / "full.json").exists():
        full = load_adapter(base.model, find_adapter(folder / "warmup"))
        write_json(folder / "full.json", {"pairs": measured(full)})
        full.unload()
    adapted = add_adapter(base.model, lora_settings(config.lora), seed=config.seed)
    start = {name: weight.detach().clone() for name, weight in lora_parameters(adapted)}

    def margins_after(rows: list[int], repeat: int) -> Margins:
        with torch.no_grad():
            for name, weight in lora_parameters(adapted):
                weight.copy_(start[name])
        work = folder / "training"
        shutil.rmtree(work, ignore_errors=True)  # of a training that was interrupted
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

    return margins_after


@dataclass(frozen=True)
class Measured:
    """What was measured after training on each of s subsets, the mean over its repeats.

    Attributes:
        members: [s, n].
        pairs: Log-likelihoods of m probe pairs, by `KEPT`, [s, m].
        twice: Mean margins of the first two repeats, of the t subsets that have them, [t, 2].
        repeats: Trainings of a subset, on average.
    """

    members: Members
    pairs: Mapping[str, Floats]
    twice: Floats
    repeats: float

    @property
    def margins(self) -> Floats:
        """Of whole sentences, [s, m]."""
        return self.pairs["sum_more"] - self.pairs["sum_less"]


def read_measured(folder: Path, size: int) -> Measured:
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
    twice = [[mean_margin(r) for r in rs[:2]] for rs in found.values() if len(rs) > 1]
    repeats = sum(map(len, found.values())) / max(len(found), 1)
    return Measured(members, pairs, np.array(twice).reshape(-1, 2), repeats)


def mean_margin(record: Mapping[str, Any]) -> float:
    pairs = record["pairs"]
    return float(np.mean(np.subtract(pairs["sum_more"], pairs["sum_less"])))


def report(folder: Path) -> str:
    """Return what is finished as a Markdown table.

    Raises:
        ArtifactError: If nothing was begun in the folder.
    """
    if not (folder / "settings.json").exists():
        raise ArtifactError(
            f"{folder} holds no settings.json",
            expected="a folder that this benchmark has begun to fill",
            remedy="run it without --report first",
        )
    settings = read_json(folder / "settings.json")
    measured = read_measured(folder, settings["data"]["size"])
    subsets, size = measured.members.shape
    if subsets < FEWEST:
        return f"{subsets} subsets are measured, {FEWEST} are needed"
    counts = resample_counts(subsets, resamples=RESAMPLES)
    examples = load_train_set(folder / "data" / FILES["train"])
    truth = pd.DataFrame({"score": [float(example.is_bias or 0) for example in examples]})
    lines = [
        f"{subsets} subsets of {size // 2} of {size} examples, {settings['warmup']['epochs']} "
        f"epochs, {measured.margins.shape[1]} probe pairs; 95 % bootstrap intervals over subsets.",
        *levels(folder, measured),
        "",
        f"| estimator | checkpoints | {' | '.join(COLUMNS)} |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for name, which, table in [("truth", "", truth), *score_tables(folder)]:
        found = correlations_of(table, measured, truth, counts)
        shown = " | ".join(with_interval(found.get(column)) for column in COLUMNS)
        lines.append(f"| {name} | {which} | {shown} |")
    return "\n".join(lines)


def score_tables(folder: Path) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield estimator, checkpoints and scores, as far as they are computed."""
    for which in ("last", "all"):
        place = folder / f"scores-{which}"
        if not place.exists():
            continue
        main = read_json(place / RECORD_FILE)["estimator"]
        for name in ESTIMATORS:
            if (place / scores_file(name, main)).exists():
                yield name, which, pd.read_parquet(place / scores_file(name, main))


def correlations_of(
    table: pd.DataFrame, measured: Measured, truth: pd.DataFrame, counts: Floats
) -> dict[str, Correlation]:
    """Return what `COLUMNS` hold for the scores of one estimator."""

    def predicted(scores: pd.DataFrame | pd.Series) -> Floats:
        return predicted_sums(measured.members, scores.to_numpy(dtype=np.float64))

    ours, margin = predicted(table["score"]), measured.margins.mean(1)
    stereotypes, twins = measured.pairs["mean_more"], measured.pairs["mean_less"]
    found = {
        "margin": datamodeling_score(ours, margin, counts),
        "per token": datamodeling_score(ours, (stereotypes - twins).mean(1), counts),
        "beyond the count": partial_rank_correlation(
            ours, margin, predicted(truth["score"]), counts
        ),
        "stereotypes": datamodeling_score(ours, stereotypes.mean(1), counts),
    }
    single = sorted(name for name in table.columns if name.startswith(f"score_{PAIR}"))
    if single:
        found["by pair"] = datamodeling_score(predicted(table[single]), measured.margins, counts)
    return found


def with_interval(found: Correlation | None) -> str:
    if found is None or np.isnan(found.value):
        return "–"
    low, high = found.interval
    interval = "[–]" if np.isnan(low) else f"[{low:+.2f}, {high:+.2f}]"
    return f"{found.value:+.2f} {interval}"


def levels(folder: Path, measured: Measured) -> Iterator[str]:
    """Say what training does at all, how far subsets lie apart, and how much of that is chance."""
    margins = measured.margins.mean(1)
    known = [name for name in ("base", "full") if (folder / f"{name}.json").exists()]
    shown = [f"{name} {mean_margin(read_json(folder / f'{name}.json')):+.3f}" for name in known]
    yield (
        f"Mean margin in nats: {', '.join(shown)}, subsets {margins.mean():+.3f} with a standard "
        f"deviation of {margins.std(ddof=1):.3f}."
    )
    if len(measured.twice) >= FEWEST:
        counts = resample_counts(len(measured.twice), key=(1,), resamples=RESAMPLES)
        first, second = measured.twice.T
        again = rank_correlation(first, second, counts)
        ceiling = attainable_correlation(again.value, round(measured.repeats))
        yield (
            f"Two trainings of {len(measured.twice)} subsets in other orders agree by "
            f"{with_interval(again)}; with {measured.repeats:.1f} trainings a subset a perfect "
            f"prediction could reach about {ceiling:.2f}."
        )


if __name__ == "__main__":
    sys.exit(main())
