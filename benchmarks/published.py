"""Published bias figures of causal models beside ours, in every way of scoring.

Every published value comes with its source, the scoring it was made with where that is known, and
how far from it ours may lie. The models are looked for in folders that are named, then in the hub
and its cache; those that cannot be had are said. For every value ours is printed in all variants
of `biasdiff.evaluation.stereotype_preference.VARIANTS` that apply, with the closest one marked.

Exits with 0 if every value with a known scoring is met within its tolerance, with 1 if one is not,
with 2 if no data can be had and with 3 if no model can.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from biasdiff.config import ModelConfig
from biasdiff.data.probe import ProbePair
from biasdiff.errors import BiasdiffError, DataError, ModelError, nearest
from biasdiff.evaluation.benchmark import Inputs, Subject
from biasdiff.evaluation.crows_pairs import load_crows_pairs
from biasdiff.evaluation.stereoset import SIDES, by_term, icat, read_items
from biasdiff.evaluation.stereotype_preference import (
    VARIANTS,
    margins,
    score_pairs,
    variants_in,
)
from biasdiff.models.loading import (
    ModelSource,
    context_length,
    default_device,
    load_model,
    load_tokenizer,
    resolve_model,
)

AGREES, DIFFERS, NO_DATA, NO_MODEL = 0, 1, 2, 3
PARAMETERS = {
    "gpt2": 0.1,
    "EleutherAI/pythia-70m": 0.07,
    "EleutherAI/pythia-160m": 0.16,
    "EleutherAI/pythia-410m": 0.4,
    "EleutherAI/pythia-1b": 1.0,
    "EleutherAI/pythia-1.4b": 1.4,
    "EleutherAI/pythia-2.8b": 2.8,
    "EleutherAI/pythia-6.9b": 6.9,
    "EleutherAI/pythia-12b": 12.0,
    "facebook/opt-350m": 0.35,
    "facebook/opt-1.3b": 1.3,
    "Qwen/Qwen2.5-0.5B": 0.5,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.5,
}
"""Billions of parameters of each model, by its name on the hub."""
CROWS_PAIRS, STEREOSET = "crows_pairs", "stereoset"
WHOLE_SENTENCE_VARIANTS = ("sum", "mean", "mean_bias_bench")
"""Those that score a sentence without a second one."""


@dataclass(frozen=True)
class Published:
    """One published value.

    Attributes:
        model: Name on the hub.
        benchmark: ``crows_pairs`` or ``stereoset``.
        figure: ``metric``, ``stereotype`` or ``anti_stereotype``, ``metric/TYPE`` for one bias
            type; for StereoSet's intrasentence part ``lms``, ``ss`` or ``icat``.
        value: Percent.
        tolerance: How far ours may lie from it, in points.
        source: Where it was published.
        variant: The scoring it was made with, None where it is not known.
        note: What else differs.
    """

    model: str
    benchmark: str
    figure: str
    value: float
    tolerance: float
    source: str
    variant: str | None
    note: str = ""


BIAS_BENCH = "leaderboard of Bias Bench"
PYTHIA = "evaluations published with Pythia (lm-evaluation-harness)"
STEREOSET_SOURCE = "results in the repository of StereoSet"
PAPER = "BIAS DIFF"
REVISED = "on the revised set of 1,677 pairs, ours on the original 1,508"
_PYTHIA_VALUES = {
    "70m": 51.94,
    "160m": 56.17,
    "410m": 58.97,
    "1b": 60.11,
    "1.4b": 60.70,
    "2.8b": 63.57,
    "6.9b": 65.24,
    "12b": 64.82,
}
_PAPER_VALUES = {
    "facebook/opt-350m": (59.68, 60.54, 54.59),
    "facebook/opt-1.3b": (64.52, 66.90, 50.46),
    "Qwen/Qwen2.5-0.5B": (58.09, 59.22, 51.38),
    "Qwen/Qwen2.5-1.5B-Instruct": (63.46, 64.88, 55.05),
}
TABLE: tuple[Published, ...] = (
    *(
        Published("gpt2", CROWS_PAIRS, f"metric/{t}", value, 1.0, BIAS_BENCH, "mean_bias_bench")
        for t, value in (("gender", 56.87), ("race-color", 59.69), ("religion", 62.86))
    ),
    *(
        Published("gpt2", STEREOSET, name, value, 0.5, STEREOSET_SOURCE, "mean_bias_bench")
        for name, value in (("lms", 91.11), ("ss", 61.93), ("icat", 69.37))
    ),
    *(
        Published(
            f"EleutherAI/pythia-{size}", CROWS_PAIRS, "metric", value, 3.0, PYTHIA, "sum", REVISED
        )
        for size, value in _PYTHIA_VALUES.items()
    ),
    *(
        Published(model, CROWS_PAIRS, figure, value, 1.0, PAPER, None)
        for model, values in _PAPER_VALUES.items()
        for figure, value in zip(("metric", "stereotype", "anti_stereotype"), values, strict=True)
    ),
)

Found = Mapping[str, Mapping[str, float]]
"""Ours by figure and variant."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="where the model of a published name lies; may be repeated",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="published names to evaluate")
    parser.add_argument(
        "--up-to", type=float, default=2.0, help="billions of parameters of models of the hub"
    )
    parser.add_argument("--limit", type=int, help="examples of each benchmark, the first ones")
    parser.add_argument("--max-tokens", type=int, default=ModelConfig().max_tokens)
    parser.add_argument("--threads", type=int, help="of torch; its own choice by default")
    options = parser.parse_args(arguments)
    folders = dict(_named_folder(parser, text) for text in options.folder)
    for name in options.only or ():
        _require_published(parser, name)
    if options.threads:
        torch.set_num_threads(options.threads)

    names = [name for name in PARAMETERS if name in (options.only or PARAMETERS)]
    results: dict[str, Mapping[str, Found]] = {}
    models = 0
    for name in names:
        if name not in folders and PARAMETERS[name] > options.up_to:
            print(f"{name}: left out, more than {options.up_to:g} billion parameters (--up-to)")
            continue
        try:
            subject = _load(resolve_model(folders.get(name, name)), options.max_tokens)
        except ModelError as error:
            print(f"{name}: not to be had ({error.found})")
            continue
        models += 1
        results[name] = _measure(name, subject, options.limit)
    if not models:
        print(
            f"no model can be had: name a folder, --folder {names[0]}=FOLDER, or connect to the hub"
        )
        return NO_MODEL
    if options.limit:
        print(f"only the first {options.limit} examples: no value can be met but by chance")
    return report(results)


def _named_folder(parser: argparse.ArgumentParser, text: str) -> tuple[str, str]:
    name, sign, folder = text.partition("=")
    if not sign or not Path(folder).is_dir():
        parser.error(f"--folder {text}: expected NAME=FOLDER with a folder that is there")
    _require_published(parser, name)
    return name, str(Path(folder).resolve())


def _require_published(parser: argparse.ArgumentParser, name: str) -> None:
    if name not in PARAMETERS:
        known = ", ".join(PARAMETERS)
        parser.error(f"no published value of {name}{nearest(name, PARAMETERS)}; known: {known}")


def _load(source: ModelSource, max_tokens: int) -> Subject:
    tokenizer = load_tokenizer(source)
    model = load_model(source, device=default_device())
    return Subject(model, tokenizer, context_length(model, tokenizer), max_tokens)


def _measure(name: str, subject: Subject, limit: int | None) -> dict[str, Found]:
    """Return ours by benchmark, of those that have a published value and whose data are there."""
    wanted = [benchmark for benchmark in MEASUREMENTS if _entries(name, benchmark)]
    found: dict[str, Found] = {}
    for benchmark in wanted:
        figures = [entry.figure for entry in _entries(name, benchmark)]
        try:
            found[benchmark] = MEASUREMENTS[benchmark](subject, figures, limit)
        except DataError as error:
            print(f"{name}, {benchmark}: {error}")
    return found


def _entries(model: str, benchmark: str) -> list[Published]:
    return [entry for entry in TABLE if (entry.model, entry.benchmark) == (model, benchmark)]


def crows_pairs_figures(subject: Subject, figures: Sequence[str], limit: int | None) -> Found:
    """Return percentages of pairs whose ``sent_more`` is preferred, by figure and variant."""
    frame = score_pairs(subject, load_crows_pairs()[:limit], bias_bench=True, name=CROWS_PAIRS)
    masks = {
        "metric": np.ones(len(frame), dtype=bool),
        "stereotype": (frame["direction"] == "stereo").to_numpy(dtype=bool),
        "anti_stereotype": (frame["direction"] == "antistereo").to_numpy(dtype=bool),
        **{
            f"metric/{bias_type}": (frame["bias_type"] == bias_type).to_numpy(dtype=bool)
            for bias_type in frame["bias_type"].unique()
        },
    }
    preferred = {v: (margins(frame, v) > 0).to_numpy(dtype=bool) for v in variants_in(frame)}
    return {
        figure: {variant: _percent(hits[masks[figure]]) for variant, hits in preferred.items()}
        for figure in figures
        if figure in masks
    }


def stereoset_figures(subject: Subject, figures: Sequence[str], limit: int | None) -> Found:
    """Return LMS, SS and ICAT of StereoSet's intrasentence part, by figure and variant."""
    numbered = read_items(Inputs(limit=limit), ("intrasentence",))

    def scores(other: str) -> pd.DataFrame:
        pairs = [
            ProbePair(item.stereotype, getattr(item, other), "stereo", item.bias_type, row)
            for row, item in numbered
        ]
        return score_pairs(subject, pairs, bias_bench=True, name=f"{STEREOSET}, {other}")

    anti, unrelated = scores("anti_stereotype"), scores("unrelated")
    found: dict[str, dict[str, float]] = {figure: {} for figure in figures}
    for variant in WHOLE_SENTENCE_VARIANTS:
        columns = (anti[f"{variant}_more"], anti[f"{variant}_less"], unrelated[f"{variant}_less"])
        frame = pd.DataFrame(dict(zip(SIDES, columns, strict=True)))
        frame["target"] = [item.target for _, item in numbered]
        terms = by_term(frame)
        lms, ss = float(terms["lms"].mean()), float(terms["ss"].mean())
        values = {"lms": lms, "ss": ss, "icat": float(icat(lms, ss))}
        for figure in figures:
            found[figure][variant] = values[figure]
    return found


MEASUREMENTS: dict[str, Callable[[Subject, Sequence[str], int | None], Found]] = {
    CROWS_PAIRS: crows_pairs_figures,
    STEREOSET: stereoset_figures,
}


def report(results: Mapping[str, Mapping[str, Found]]) -> int:
    """Print every published value with ours, and return the exit code."""
    outside = shown = 0
    for name, benchmarks in results.items():
        for benchmark, found in benchmarks.items():
            entries = [entry for entry in _entries(name, benchmark) if entry.figure in found]
            shown += len(entries)
            outside += sum(_print(entry, found[entry.figure]) for entry in entries)
            if entries:
                _print_closest(name, benchmark, entries, found)
    if not shown:
        print("nothing was measured")
        return NO_DATA
    print(f"{outside} of {shown} values are not met in the scoring they were published with")
    return DIFFERS if outside else AGREES


def _print(entry: Published, ours: Mapping[str, float]) -> bool:
    """Print one published value and ours; return whether its own scoring misses it."""
    closest = min(ours, key=lambda v: (_distance(entry, ours[v]), v != entry.variant))
    said = entry.variant or "not stated"
    print(
        f"\n{entry.model}, {entry.benchmark} {entry.figure}: published {entry.value:.2f} "
        f"± {entry.tolerance:g}, scoring {said}; {entry.source}"
    )
    if entry.note:
        print(f"  {entry.note}")
    for variant in (v for v in VARIANTS if v in ours):
        apart = ours[variant] - entry.value
        marks = ["closest"] * (variant == closest) + ["its scoring"] * (variant == entry.variant)
        print(f"  {variant:<18}{ours[variant]:7.2f} {apart:+8.2f}  {', '.join(marks)}".rstrip())
    if entry.variant is None:
        met = _distance(entry, ours[closest]) <= entry.tolerance
        print(f"  {closest} is closest, {'within' if met else 'OUTSIDE'} the tolerance")
        return False
    met = _distance(entry, ours[entry.variant]) <= entry.tolerance
    print(f"  {entry.variant} is {'within' if met else 'OUTSIDE'} the tolerance")
    return not met


def _print_closest(name: str, benchmark: str, entries: Sequence[Published], found: Found) -> None:
    """Print which variant comes closest to all values of a model and benchmark together."""
    variants = found[entries[0].figure]
    apart = {
        variant: float(np.mean([_distance(e, found[e.figure][variant]) for e in entries]))
        for variant in variants
    }
    closest = min(apart, key=apart.__getitem__)
    print(
        f"  over {len(entries)} values of {name}, {benchmark}: {closest} comes closest, "
        f"{apart[closest]:.2f} points apart on average"
    )


def _distance(entry: Published, value: float) -> float:
    return abs(value - entry.value) if not np.isnan(value) else float("inf")


def _percent(hits: np.ndarray) -> float:
    return 100.0 * float(hits.mean()) if len(hits) else float("nan")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BiasdiffError as problem:
        print(problem, file=sys.stderr)
        sys.exit(NO_DATA)
