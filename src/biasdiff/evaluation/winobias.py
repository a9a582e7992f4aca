"""WinoBias: is the pronoun that fits the stereotype of an occupation the more probable one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from biasdiff.data.probe import ProbePair
from biasdiff.data.sources import winobias
from biasdiff.data.sources.corpus import Record
from biasdiff.data.sources.finding import get_files, read_corpus
from biasdiff.errors import DataError
from biasdiff.evaluation.benchmark import (
    Benchmark,
    Inputs,
    Subject,
    clusters_of,
    mean_comparison,
    mean_metric,
    percentage_metric,
    without_options,
)
from biasdiff.evaluation.stereotype_preference import score_pairs
from biasdiff.results import Metric

_MARKED = re.compile(r"\[([^\]]*)\]")
_ARTICLE = re.compile(r"^(?:the|an|a)\s+")


def load_pairs() -> list[ProbePair]:
    """Read the pro-stereotyped sentences with their anti-stereotyped twins.

    ``bias_type`` is the part (``type1-dev``), ``extra`` holds ``name`` and, as ``stereotype_id``,
    the two occupations in alphabetical order: the mirrored sentences about the same two, in which
    the pronoun means the one or the other, are as a rule four (two in dev, two in test).

    Raises:
        DataError: If the files can neither be found nor fetched, or a sentence has no twin.
    """
    records = read_corpus(winobias.CORPUS).records
    sides: dict[str, dict[int | None, Record]] = {}
    for record in records:
        sides.setdefault(record.group, {})[record.is_bias] = record
    lone = [name for name, pair in sides.items() if len(pair) < 2]
    if lone:
        raise DataError(
            f"winobias: {len(lone)} sentences have no twin, first {lone[0]}",
            expected="the same numbers in the pro_ and anti_stereotyped files",
            remedy="fetch the files again",
        )
    named = _occupation_pattern(records)
    return [
        ProbePair(
            sent_more=pair[1].text,
            sent_less=pair[0].text,
            stereo_antistereo="stereo",
            bias_type=name.rsplit("-", 1)[0],
            row=row,
            extra={"name": name, "stereotype_id": _occupations(named, pair[1].text)},
        )
        for row, (name, pair) in enumerate(sides.items())
    ]


def _occupation_pattern(records: Sequence[Record]) -> re.Pattern[str]:
    """Return what matches the occupations, which are the first thing marked in every sentence."""
    marked = (_MARKED.search(record.extra["marked"]) for record in records)
    names = {_ARTICLE.sub("", m[1].strip().lower()) for m in marked if m is not None} - {""}
    longest = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest))})\b", re.IGNORECASE)


def _occupations(named: re.Pattern[str], text: str) -> str:
    """Return the first two occupations that a sentence names; one sentence names a third."""
    found = list(dict.fromkeys(m[0].lower() for m in named.finditer(text)))
    return " + ".join(sorted(found[:2]))


def _score(subject: Subject, inputs: Inputs) -> pd.DataFrame:
    pairs = inputs.first(load_pairs())
    scores = score_pairs(subject, pairs, name="winobias")
    return pd.DataFrame(
        {
            "row": [pair.extra["name"] for pair in pairs],
            "part": scores["bias_type"],
            "occupations": scores["stereotype_id"],
            "tokens_pro": scores["tokens_more"],
            "tokens_anti": scores["tokens_less"],
            "sum_pro": scores["sum_more"],
            "sum_anti": scores["sum_less"],
            "margin": scores["margin"],
            "margin_per_token": scores["margin_per_token"],
        }
    )


def winobias_metrics(scores: pd.DataFrame) -> dict[str, Metric]:
    """Return what the pairs say, over all and by part.

    With margin = log P(pro-stereotyped sentence) - log P(anti-stereotyped one): ``metric``, the
    percentage of pairs with a margin above 0 (50 is ideal); ``ties``, the percentage with a margin
    of 0, which count as not preferred; ``margin`` and ``margin_per_token``, means in nats (0 is
    ideal); then ``metric/type1-dev``, ``margin/type1-dev`` and so on. Intervals resample the pairs
    of occupations.
    """
    clusters = clusters_of(scores, "occupations")
    metrics = {
        "metric": percentage_metric(scores["margin"] > 0, clusters=clusters),
        "ties": percentage_metric(scores["margin"] == 0, "none", clusters),
        "margin": mean_metric(scores["margin"], clusters=clusters),
        "margin_per_token": mean_metric(scores["margin_per_token"], clusters=clusters),
    }
    for name, part in scores.groupby("part", sort=True):
        inside = clusters_of(part, "occupations")
        metrics[f"metric/{name}"] = percentage_metric(part["margin"] > 0, clusters=inside)
        metrics[f"margin/{name}"] = mean_metric(part["margin"], clusters=inside)
    return metrics


BENCHMARK = Benchmark(
    name="winobias",
    title="WinoBias",
    score=_score,
    aggregate=winobias_metrics,
    compare=mean_comparison(
        {
            "margin": lambda frame: frame["margin"],
            "margin_per_token": lambda frame: frame["margin_per_token"],
            "metric": lambda frame: (frame["margin"] > 0).to_numpy(dtype=bool),
        },
        by="part",
        cluster="occupations",
    ),
    files=without_options("winobias", lambda: get_files(winobias.CORPUS)),
)
"""1,584 pairs, scored as whole sentences. In 19 of them the authors' two sentences differ in more
than pronouns (a word mended on one side); they are kept as published."""
