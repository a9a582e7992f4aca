"""How well every estimator and baseline finds the biased examples of mixtures, over several draws.

    python benchmarks/detection.py --out runs/detection             # go on where it was
    python benchmarks/detection.py --out runs/detection --only matched:0 crossed:0
    python benchmarks/detection.py --out runs/detection --report    # tables of what is finished

For each mixture and seed: the mixture is built with all guards, a probe of shipped pairs is drawn
whose stereotypes are not in it, an adapter is warmed up on it, and all estimators that need no
setting score it. Every stage is an artifact, so that a killed run goes on and other settings are
refused. ``OUT/MIXTURE-SEED.json`` has the figures of one draw.

A gradient estimator's score is also judged after two treatments that know no ground truth: what is
left of it after a regression on the logarithm of the number of target tokens (``length_residual``),
and the highest of its scores by bias type (``type_max``).
"""

from __future__ import annotations

import argparse
import functools
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from biasdiff.attribution.baselines.length import LENGTH
from biasdiff.attribution.estimator import GradientEstimator
from biasdiff.attribution.registry import ESTIMATORS
from biasdiff.config import Config, ModelConfig, WarmupConfig, config_from
from biasdiff.data.draws import shipped_draw
from biasdiff.data.files import read_rows
from biasdiff.data.mixtures.recipes import MIXTURES
from biasdiff.data.probe import ProbePair, load_probe_pairs, save_probe_pairs
from biasdiff.data.shipped_sets import PAIRS_FILE
from biasdiff.data.stratification import grouped, proportional_quotas
from biasdiff.errors import ArtifactError, ConfigError, DataError
from biasdiff.evaluation.detection import detection_metrics, selection_metrics
from biasdiff.evaluation.detection_controls import (
    hierarchical_draws,
    hierarchical_replicates,
    length_residual,
    length_strata,
    resampled_auprc,
    resampled_auroc,
    resampled_selection,
    resampled_stratified_auroc,
    stratified_auroc,
)
from biasdiff.functional.resampling import bootstrap_p, centred_interval
from biasdiff.functional.statistics import holm
from biasdiff.pipeline.artifacts import Artifact, file_fingerprint, read_json, write_json
from biasdiff.pipeline.attribute import RECORD_FILE, plan_attribute
from biasdiff.pipeline.mixtures import build_to_file
from biasdiff.pipeline.scores import scores_file
from biasdiff.pipeline.warmup import plan_warmup
from biasdiff.probing.lexicon import load_lexicon
from biasdiff.progress import configure, say, task
from biasdiff.results import finite_or_none
from experiment import exit_code

NAMES = ("trex_mix", "gen_mix", "mix", "matched", "crossed")
SEEDS = (0, 1, 2)
FRACTIONS = (0.02, 0.05, 0.10, 0.15, 0.30, 0.35)
AREAS = ("AUROC", "AUPRC", "AUROC within length quartiles", "the same, quartiles by their pairs")
FIGURES = (*AREAS, *(f"{k} at {f:.0%}" for f in FRACTIONS for k in ("coverage", "precision")))
SHOWN = 10
"""False positives of each estimator and draw."""
TRAIN, PROBE = "train.jsonl", "probe.csv"


def main() -> int:
    options = read_options()
    configure(quiet=True)
    if options.threads:
        torch.set_num_threads(options.threads)

    def work() -> None:
        if options.report:
            print(report(options))
        else:
            for mixture, seed in options.only:
                run(mixture, seed, options)

    return exit_code(work)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", metavar="MIXTURE:SEED", help="default: all of them")
    parser.add_argument("--size", type=int, default=1000, help="rows of a mixture")
    parser.add_argument("--probe-pairs", type=int, default=300)
    parser.add_argument("--model", default=ModelConfig().name)
    parser.add_argument("--epochs", type=int, default=3, help="of the warm-up")
    parser.add_argument("--rate", type=float, default=WarmupConfig().learning_rate)
    parser.add_argument("--targets", default="", help="linear maps a,b; default q_proj,v_proj")
    parser.add_argument("--max-tokens", type=int, default=ModelConfig().max_tokens)
    parser.add_argument("--checkpoint", choices=["first", "last", "both"], default="last")
    parser.add_argument("--estimators", default="", help="a,b; default: all that need no setting")
    parser.add_argument("--threads", type=int, default=0, help="default: torch's own number")
    parser.add_argument("--force", action="store_true", help="replace what has other settings")
    parser.add_argument("--report", action="store_true", help="only tables of what is finished")
    options = parser.parse_args()
    everything = [f"{mixture}:{seed}" for mixture in NAMES for seed in SEEDS]
    parts = [re.fullmatch(r"(\w+):(\d+)", part) for part in options.only or everything]
    if not all(part and part[1] in MIXTURES for part in parts):
        parser.error(f"--only takes MIXTURE:SEED, MIXTURE one of {', '.join(MIXTURES)}")
    options.only = [(part[1], int(part[2])) for part in parts if part]
    options.estimators = options.estimators.split(",") if options.estimators else without_settings()
    unknown = set(options.estimators) - set(ESTIMATORS)
    if unknown:
        parser.error(f"no estimator {', '.join(unknown)}; there are {', '.join(ESTIMATORS)}")
    return options


def without_settings() -> list[str]:
    """Return the estimators and baselines that run without a setting of the user's."""
    found = []
    for name, estimator in ESTIMATORS.items():
        try:
            estimator.check({})
        except ConfigError:
            continue
        found.append(name)
    return found


def run(mixture: str, seed: int, options: argparse.Namespace) -> None:
    """Bring one mixture and seed to its JSON file."""
    title, place = f"{mixture}:{seed}", options.out / f"{mixture}-{seed}"
    settings = {
        name: getattr(options, name)
        for name in ("size", "probe_pairs", "model", "epochs", "rate", "targets", "max_tokens")
    }
    say(f"== {title}")
    with timed(f"{title} data"):
        data = plan_data(mixture, seed, place / "data", options)
        data.make(force=options.force)
    train, probe = data.folder / TRAIN, data.folder / PROBE
    config = config_for(seed, options)
    with timed(f"{title} warm-up"):
        warm = plan_warmup(options.model, train, place / "warmup", config=config)
        warm.make(force=options.force)
    record: dict[str, Any] = {
        "mixture": mixture,
        "seed": seed,
        "settings": settings,
        "data": data.fingerprint,
        "warmup": warm.fingerprint,
        "card": read_json(data.folder / "train.card.json"),
        "probe": dict(Counter(p.bias_type for p in load_probe_pairs(probe))),
        "checkpoints": {},
    }
    file = options.out / f"{title.replace(':', '-')}.json"
    before = read_json(file) if file.exists() else {}
    if all(before.get(key) == record[key] for key in ("data", "warmup")):
        record["checkpoints"] = before["checkpoints"]
    wanted = ("first", "last") if options.checkpoint == "both" else (options.checkpoint,)
    for which in wanted:
        config = config_for(seed, options, epoch=1 if which == "first" else None)
        with timed(f"{title} attribute, {which} checkpoint"):
            scored = plan_attribute(
                options.model,
                train,
                probe,
                place / f"attribute-{which}",
                adapter=warm.folder,
                config=config,
            )
            scored.make(force=options.force)
        done = record["checkpoints"].get(which, {})
        if done.get("made_from") == scored.fingerprint:
            say(f"{title} figures, {which} checkpoint: complete, nothing to do")
            continue
        with timed(f"{title} figures, {which} checkpoint"):
            table = score_table(scored.folder, train, config)
            notes = read_json(scored.folder / RECORD_FILE).get("notes", {})
            figures = {"made_from": scored.fingerprint, "notes": notes} | figures_of(table)
            table.to_parquet(place / f"scores-{which}.parquet")
        record["checkpoints"][which] = figures
        record["seconds"] = {
            stage.parent.name: read_json(stage)["seconds"]
            for stage in sorted(place.glob("*/stage.json"))
        }
        write_json(file, record)
    say(f"== {title} finished: {file}")


@contextmanager
def timed(stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    say(f"{stage}: {time.perf_counter() - began:.1f} s in this run")


def config_for(seed: int, options: argparse.Namespace, *, epoch: int | None = None) -> Config:
    main, *also = dict.fromkeys([*options.estimators, LENGTH.name])  # the treatments need lengths
    return config_from(
        {
            "seed": seed,
            "model": {"name": options.model, "max_tokens": options.max_tokens},
            "lora": {"targets": options.targets.split(",") if options.targets else []},
            "warmup": {"epochs": options.epochs, "learning_rate": options.rate},
            "attribution": {"estimator": main, "also": also, "checkpoint": epoch},
        }
    )


def plan_data(mixture: str, seed: int, out: Path, options: argparse.Namespace) -> Artifact:
    """Describe the drawing of mixture and probe.

    The builder keeps the stereotypes of the whole reference draw out of the mixture, and the
    probe is drawn from that; both facts are checked once more on what was written.
    """

    def build(folder: Path) -> None:
        build_to_file(mixture, folder / TRAIN, size=options.size, seed=seed)
        pairs = draw_probe(shipped_draw("reference"), options.probe_pairs, seed=seed)
        stated = {row.get("stereotype_id") for row in read_rows(folder / TRAIN)} - {"", None}
        shared = stated & {pair.stereotype_id for pair in pairs}
        if shared:
            raise DataError(
                f"{len(shared)} stereotypes of the probe are in {mixture}",
                expected="none",
                remedy="build the mixture with disjoint='stereotype'",
            )
        save_probe_pairs(pairs, folder / PROBE)

    settings = {
        "mixture": mixture,
        "size": options.size,
        "seed": seed,
        "disjoint": "stereotype",
        "probe_pairs": options.probe_pairs,
    }
    return Artifact("data", out, settings, {"pairs": file_fingerprint(PAIRS_FILE)}, build)


def draw_probe(pairs: Sequence[ProbePair], count: int, *, seed: int) -> list[ProbePair]:
    """Draw pairs, every bias type with the share it has; in the order in which they came."""
    if count > len(pairs):
        raise DataError(
            f"{count} probe pairs asked for",
            expected=f"at most {len(pairs)}, the reference draw",
            remedy="change --probe-pairs",
        )
    shuffle = random.Random(seed)
    by_type = grouped(pairs, lambda pair: pair.bias_type)
    quotas = proportional_quotas({name: len(own) for name, own in by_type.items()}, count)
    drawn = [p for name in sorted(by_type) for p in shuffle.sample(by_type[name], quotas[name])]
    return sorted(drawn, key=lambda pair: pair.row)


def score_table(folder: Path, train: Path, config: Config) -> pd.DataFrame:
    """Return a row for each train example: what it is, and a column for each method."""
    main = config.attribution.estimator
    scores = {
        name: pd.read_parquet(folder / scores_file(name, main))
        for name in (main, *config.attribution.also)
    }
    columns = ("id", "text", "source", "is_bias", "bias_type")
    table = pd.DataFrame([{c: row.get(c) for c in columns} for row in read_rows(train)])
    table["is_bias"] = table["is_bias"].astype("int64")
    table["targets"] = scores[LENGTH.name]["score"]
    for name, own in scores.items():
        if list(own["id"]) != list(table["id"]):
            raise ArtifactError(
                f"{folder} has scores of other examples",
                expected=f"those of {train}",
                remedy="give --force",
            )
        table[name] = own["score"]
        if isinstance(ESTIMATORS[name], GradientEstimator):
            lengths = table["targets"].to_numpy()
            table[f"{name}/length_residual"] = length_residual(own["score"].to_numpy(), lengths)
            table[f"{name}/type_max"] = own.filter(like="score_").max(axis=1)
    return table


def methods_in(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name.partition("/")[0] in ESTIMATORS]


def is_baseline(method: str) -> bool:
    return getattr(ESTIMATORS[method.partition("/")[0]], "is_baseline", False)


def figures_of(table: pd.DataFrame) -> dict[str, Any]:
    """Return the figures of every method on one draw, and the estimators' false positives."""
    truth, strata = table["is_bias"].to_numpy(), length_strata(table["targets"].to_numpy())
    methods = methods_in(table)
    found: dict[str, Any] = {"methods": {}, "false_positives": {}}
    with task("figures", len(methods)) as progress:
        for name in methods:
            scores = table[name].to_numpy()
            areas = detection_metrics(scores, truth, fraction=FRACTIONS[-1])
            taken = {f"{f:g}": selection_metrics(scores, truth, fraction=f) for f in FRACTIONS}
            found["methods"][name] = {
                "baseline": is_baseline(name),
                "auroc": areas["auroc"].to_json(),
                "auprc": areas["auprc"].to_json(),
                "auroc_within_length_quartiles": {
                    kind: finite_or_none(stratified_auroc(scores, truth, strata, by_pairs=by_pairs))
                    for kind, by_pairs in (("equal", False), ("by_pairs", True))
                },
                "selection": {
                    fraction: {kind: metric.to_json() for kind, metric in own.items()}
                    for fraction, own in taken.items()
                },
            }
            progress.advance()
    for name in methods:
        if "/" not in name and not is_baseline(name):
            found["false_positives"][name] = false_positives(table, name)
    others = [group_words(text) for text in table.loc[table["is_bias"] == 0, "text"]]
    found["others_with_group_words"] = finite_or_none(float(np.mean([bool(w) for w in others])))
    found["length_quartiles"] = [
        {"biased": int(truth[strata == s].sum()), "other": int((1 - truth[strata == s]).sum())}
        for s in range(4)
    ]
    return found


def false_positives(table: pd.DataFrame, method: str) -> list[dict[str, Any]]:
    """Return the highest of the examples that are not biased, with their rank among all."""
    ranked = table.iloc[np.argsort(-table[method].to_numpy(), kind="stable")]
    ranked = ranked.assign(rank=np.arange(1, len(ranked) + 1))
    highest = ranked[ranked["is_bias"] == 0].head(SHOWN)
    return [
        {
            "rank": int(row["rank"]),
            "score": finite_or_none(float(row[method])),
            "id": row["id"],
            "text": row["text"],
            "group_words": group_words(row["text"]),
        }
        for row in highest.to_dict("records")
    ]


@functools.cache
def _lexicon_pattern() -> re.Pattern[str]:
    """Return a pattern of all group words that have a counterpart, the longer before the shorter.

    A word in lower case is found in any case; one with a capital only as it is written.
    """
    words = sorted(load_lexicon().swaps(), key=len, reverse=True)
    phrases = [re.escape(w) if w != w.lower() else f"(?i:{re.escape(w)})" for w in words]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(phrases)})(?![\w-])")


def group_words(text: str) -> list[str]:
    """Return the group words of the shipped lexicon in a text, each once."""
    return list(dict.fromkeys(_lexicon_pattern().findall(text)))


def report(options: argparse.Namespace) -> str:
    """Return the tables of everything finished, and leave them as ``report.md``."""
    results = [read_json(file) for file in sorted(options.out.glob("*-*.json"))]
    if not results:
        raise DataError(
            f"{options.out} has no finished mixture",
            expected="MIXTURE-SEED.json",
            remedy="run without --report first",
        )
    settings = results[0]["settings"]
    for result in results:
        if result["settings"] != settings:
            raise DataError(
                f"{result['mixture']}:{result['seed']} has other settings than the rest",
                expected=str(settings),
                remedy="keep runs of different settings in different folders",
            )
    sections: dict[tuple[str, str], Section] = {}
    for mixture in sorted({r["mixture"] for r in results}, key=[*NAMES, *MIXTURES].index):
        for which in ("first", "last"):
            own = [r for r in results if r["mixture"] == mixture and which in r["checkpoints"]]
            if own:
                say(f"{mixture}, {which} checkpoint")
                sections[mixture, which] = Section(own, which, options)
    lines = ["# Detection", "", ", ".join(f"{k} {v}" for k, v in settings.items() if v) + ".", ""]
    lines += overview(sections)
    for section in sections.values():
        lines += section.lines()
    text = "\n".join(lines) + "\n"
    (options.out / "report.md").write_text(text, encoding="utf-8")
    return text


class Section:
    """One mixture at one checkpoint: figures over its draws, differences, false positives."""

    def __init__(
        self, results: Sequence[Mapping[str, Any]], which: str, options: argparse.Namespace
    ) -> None:
        self.results, self.which = results, which
        tables = [
            pd.read_parquet(options.out / f"{r['mixture']}-{r['seed']}" / f"scores-{which}.parquet")
            for r in results
        ]
        self.size = sum(len(table) for table in tables) // len(tables)
        self.methods = [
            name
            for name in methods_in(tables[0])
            if name.partition("/")[0] in {*options.estimators}
            and all(name in table.columns for table in tables)
        ]
        strata = [length_strata(table["targets"].to_numpy()) for table in tables]
        draws = hierarchical_draws([len(table) for table in tables])
        self.values: dict[str, np.ndarray] = {}
        self.replicates: dict[str, np.ndarray] = {}
        with task("replicates", len(self.methods)) as progress:
            for name in self.methods:

                def figures(number: int, counts: np.ndarray, name: str = name) -> np.ndarray:
                    table = tables[number]
                    truth = table["is_bias"].to_numpy()
                    return all_figures(table[name].to_numpy(), truth, counts, strata[number])

                whole = [figures(j, np.ones((1, len(t)), np.int64)) for j, t in enumerate(tables)]
                self.values[name] = np.concatenate(whole).mean(0)
                self.replicates[name] = hierarchical_replicates(draws, figures)
                progress.advance()

    def shown(self, method: str, figure: str, digits: int = 3) -> str:
        """Return a figure's mean over the draws with its interval."""
        place = FIGURES.index(figure)
        value, most = self.values[method][place], 1.0 if figure in AREAS else 100.0
        low, high = centred_interval(self.replicates[method][:, place], value, low=0, high=most)
        return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    def ranked(self) -> list[str]:
        """Return the methods, the highest AUROC first."""
        return sorted(self.methods, key=lambda name: -self.values[name][0])

    def differences(self, figure: str) -> tuple[str, dict[str, str]]:
        """Return the baseline with the highest figure, and each method's difference to it."""
        place = FIGURES.index(figure)
        baselines = [name for name in self.methods if is_baseline(name)]
        if not baselines:
            return "no baseline", {}
        best = max(baselines, key=lambda name: self.values[name][place])
        found = {}
        for name in self.methods:
            value = self.values[name][place] - self.values[best][place]
            replicates = self.replicates[name][:, place] - self.replicates[best][:, place]
            found[name] = (value, replicates)
        found.pop(best)
        adjusted = holm([bootstrap_p(replicates, value) for value, replicates in found.values()])
        cells = {}
        for (name, (value, replicates)), p in zip(found.items(), adjusted, strict=True):
            low, high = centred_interval(replicates, value)
            cells[name] = f"{value:+.3f} [{low:+.3f}, {high:+.3f}], p {p:.3f}"
        return best, cells

    def lines(self) -> list[str]:
        """Return the section as Markdown."""
        one = self.results[0]
        seeds = ", ".join(str(result["seed"]) for result in self.results)
        quartiles = "; ".join(
            f"{q['biased']} : {q['other']}"
            for q in one["checkpoints"][self.which]["length_quartiles"]
        )
        lines = [
            f"## {one['mixture']}, {self.which} checkpoint",
            "",
            f"Seeds {seeds}; {self.size} rows; biased : other by length quartile, shortest first, "
            f"in the first draw: {quartiles}.",
            "",
        ]
        differences = [self.differences(figure) for figure in AREAS[:2]]
        header = ["method", *AREAS]
        header += [
            f"{figure} minus `{best}`"
            for figure, (best, _) in zip(AREAS[:2], differences, strict=True)
        ]
        rows = [
            [
                marked(name),
                *(self.shown(name, figure) for figure in AREAS),
                *(cells.get(name, "") for _, cells in differences),
            ]
            for name in self.ranked()
        ]
        lines += table_lines(header, rows)
        for kind in ("coverage", "precision"):
            names = [f"{kind} at {f:.0%}" for f in FRACTIONS]
            rows = [[marked(m), *(self.shown(m, f, 1) for f in names)] for m in self.ranked()]
            lines += table_lines([f"{kind}, %", *(f"{f:.0%}" for f in FRACTIONS)], rows)
        return lines + self.false_positive_lines()

    def false_positive_lines(self) -> list[str]:
        """Return the examples without bias that rank highest over all draws."""
        share = np.mean(
            [r["checkpoints"][self.which]["others_with_group_words"] for r in self.results]
        )
        lines = [f"False positives; a group word is in {share:.1%} of all unbiased examples.", ""]
        for name in self.methods:
            found = [
                (own["rank"], result["seed"], own)
                for result in self.results
                for own in result["checkpoints"][self.which]["false_positives"].get(name, [])
            ]
            rows = [
                [rank, seed, ", ".join(own["group_words"]), cut(own["text"])]
                for rank, seed, own in sorted(found, key=lambda one: one[:2])[:SHOWN]
            ]
            if rows:
                lines += [f"`{name}`", ""]
                lines += table_lines(["rank", "seed", "group words", "text"], rows)
        return lines


def all_figures(
    scores: np.ndarray, truth: np.ndarray, counts: np.ndarray, strata: np.ndarray
) -> np.ndarray:
    """Return `FIGURES` in each resample, [p, f]."""
    columns = [
        resampled_auroc(scores, truth, counts),
        resampled_auprc(scores, truth, counts),
        resampled_stratified_auroc(scores, truth, counts, strata),
        resampled_stratified_auroc(scores, truth, counts, strata, by_pairs=True),
    ]
    for fraction in FRACTIONS:
        columns += resampled_selection(scores, truth, counts, fraction)
    return np.stack(columns, axis=1)


def overview(sections: Mapping[tuple[str, str], Section]) -> list[str]:
    """Return one table of AUROC: methods by mixtures, the best on average first."""
    names = list(dict.fromkeys(name for s in sections.values() for name in s.methods))

    def average(name: str) -> float:
        return float(np.mean([s.values[name][0] for s in sections.values() if name in s.values]))

    seeds = {len(s.results) for s in sections.values()}
    rows = [
        [
            marked(name),
            *(s.shown(name, AREAS[0]) if name in s.values else "" for s in sections.values()),
        ]
        for name in sorted(names, key=lambda name: -average(name))
    ]
    return [
        f"AUROC, mean over {' or '.join(map(str, sorted(seeds)))} seeds [95 % by a bootstrap of "
        "seeds, then examples]; baselines in italics. Far below 0.5 tells the classes apart too, "
        "but the wrong way round. Seeds of one mixture draw from the same pool. p by the same "
        "bootstrap, Holm over the methods of a table; the best baseline was chosen on these data.",
        "",
        *table_lines(["method", *(f"{mixture}, {which}" for mixture, which in sections)], rows),
    ]


def marked(method: str) -> str:
    return f"*{method}*" if is_baseline(method) else method


def cut(text: str, most: int = 160) -> str:
    plain = " ".join(text.split()).replace("|", "\\|")
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def table_lines(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:], ""]


if __name__ == "__main__":
    sys.exit(main())
