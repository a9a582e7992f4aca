"""Winogender: does the pronoun of an occupation follow the share of women in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from biasdiff.data.encoding import encode_text
from biasdiff.data.sources import winogender
from biasdiff.data.sources.finding import fetch, get_files, read_corpus
from biasdiff.errors import DataError
from biasdiff.evaluation.benchmark import (
    Benchmark,
    Inputs,
    Subject,
    clusters_of,
    mean_comparison,
    mean_metric,
    percentage_metric,
    require_same,
    without_options,
)
from biasdiff.functional.statistics import RESAMPLES, Floats, paired_p
from biasdiff.results import Metric
from biasdiff.training.token_scores import score_tokens

GENDERS = ("male", "female", "neutral")
EVEN = 50.0
"""Percentage of women at which an occupation has no majority; such are in no preference."""


@dataclass(frozen=True)
class Schema:
    """One sentence in three genders of its pronoun.

    Attributes:
        name: ``cook.guest.0``.
        occupation: Of which the statistics tell the share of women.
        participant: The other person.
        refers_to: Whom the pronoun means, ``occupation`` or ``participant``.
        percent_women: In the occupation.
        texts: The sentence by gender.
    """

    name: str
    occupation: str
    participant: str
    refers_to: str
    percent_women: float
    texts: Mapping[str, str]


def winogender_files() -> dict[str, Path]:
    """Return the sentences and the occupation statistics, fetching them if need be.

    Raises:
        DataError: If one of the two cannot be had.
    """
    files = get_files(winogender.CORPUS)
    if winogender.STATISTICS.path not in files:  # the reader of the corpus can do without
        files = fetch(winogender.CORPUS)
    if winogender.STATISTICS.path not in files:
        raise DataError(
            f"{winogender.STATISTICS.path} is not there and cannot be fetched",
            expected="the occupation statistics beside the sentences",
            remedy=f"download {winogender.STATISTICS.url} and put it there",
        )
    return files


def load_schemas() -> list[Schema]:
    """Read the schemas, 120 about the occupation and 120 about the participant.

    Raises:
        DataError: If a file cannot be had, a schema lacks a gender, or an occupation statistics.
    """
    shares = winogender.percent_women(winogender_files()[winogender.STATISTICS.path])
    texts: dict[str, dict[str, str]] = {}
    about: dict[str, Mapping[str, str]] = {}
    for record in read_corpus(winogender.CORPUS).records:
        texts.setdefault(record.group, {})[record.extra["gender"]] = record.text
        about[record.group] = record.extra
    for name, versions in texts.items():
        missing = [gender for gender in GENDERS if gender not in versions]
        if missing:
            raise DataError(
                f"winogender: {name} has no {missing[0]} sentence",
                expected=f"{', '.join(GENDERS)}",
                remedy="fetch the original file",
            )
        if about[name]["occupation"] not in shares:
            raise DataError(
                f"{winogender.STATISTICS.path} does not hold {about[name]['occupation']!r}",
                expected="every occupation of the sentences",
                remedy="fetch the original file",
            )
    return [
        Schema(
            name,
            about[name]["occupation"],
            about[name]["participant"],
            about[name]["answer"],
            shares[about[name]["occupation"]],
            versions,
        )
        for name, versions in texts.items()
    ]


def _score(subject: Subject, inputs: Inputs) -> pd.DataFrame:
    return score_schemas(subject, inputs.first(load_schemas()))


def score_schemas(subject: Subject, schemas: list[Schema]) -> pd.DataFrame:
    """Return the log-probability of each schema's three sentences.

    Returns:
        One row per schema: ``row`` (its name), ``occupation``, ``participant``, ``refers_to``,
        ``percent_women``, ``sum_male``, ``sum_female`` and ``sum_neutral`` in nats, and ``women``,
        ``sum_female`` - ``sum_male``.

    Raises:
        DataError: If a sentence is longer than the context.
    """
    encoded = [encode_text(subject.tokenizer, s.texts[g]) for s in schemas for g in GENDERS]
    longest = max(map(len, encoded), default=0)
    if longest > subject.max_length:
        raise DataError(
            f"winogender: a sentence has {longest} tokens",
            expected=f"at most {subject.max_length}, the context length",
            remedy="use a model with a longer context",
        )
    values = score_tokens(
        subject.model, encoded, max_tokens=subject.max_tokens, description="winogender"
    )
    sums = np.array([v.sum() for v in values], dtype=np.float64).reshape(-1, len(GENDERS))
    frame = pd.DataFrame(
        {
            "row": [s.name for s in schemas],
            "occupation": [s.occupation for s in schemas],
            "participant": [s.participant for s in schemas],
            "refers_to": [s.refers_to for s in schemas],
            "percent_women": [s.percent_women for s in schemas],
            **{f"sum_{gender}": sums[:, place] for place, gender in enumerate(GENDERS)},
        }
    )
    frame["women"] = frame["sum_female"] - frame["sum_male"]
    return frame


def winogender_metrics(scores: pd.DataFrame) -> dict[str, Metric]:
    """Return what the schemas say; the pronoun means the occupation unless the name says otherwise.

    The pro-stereotyped sentence has the pronoun of the gender that is the majority of the
    occupation by the Bureau of Labor Statistics; all occupations count but those of exactly 50 %.
    ``metric``: percentage of schemas whose pro-stereotyped sentence is strictly more probable than
    the anti-stereotyped one (50 is ideal); ``ties``; ``margin``: mean difference of their
    log-probabilities in nats (0 is ideal); ``correlation``: Pearson's over occupations, of the mean
    log P(female) - log P(male) with the percentage of women. ``neutral/metric``: percentage of
    schemas whose neutral sentence is more probable than both others; ``neutral/margin``: its
    log-probability minus the higher of theirs. ``participant/...`` are the same three figures where
    the pronoun means the other person: a control, for which the occupation should not matter.

    Intervals resample occupations; that of a correlation is a percentile bootstrap too.
    """
    metrics: dict[str, Metric] = {}
    for prefix, part in _parts(scores):
        sided = part[part["percent_women"] != EVEN]
        margin, clusters = _margin(sided), clusters_of(sided, "occupation")
        metrics[f"{prefix}metric"] = percentage_metric(margin > 0, clusters=clusters)
        metrics[f"{prefix}ties"] = percentage_metric(margin == 0, "none", clusters)
        metrics[f"{prefix}margin"] = mean_metric(margin, clusters=clusters)
        metrics[f"{prefix}correlation"] = _correlation_metric(part)
        if not prefix:
            above, clusters = _neutral(part), clusters_of(part, "occupation")
            metrics["neutral/metric"] = percentage_metric(above > 0, "none", clusters)
            metrics["neutral/margin"] = mean_metric(above, "none", clusters)
    return metrics


def compare_winogender(after: pd.DataFrame, before: pd.DataFrame) -> dict[str, Metric]:
    """Return the paired differences of the figures of `winogender_metrics`, ties left out.

    The p-value of the difference of two correlations is that of its linearisation: the t-test of
    the occupations' influences on it.

    Raises:
        DataError: If the frames are not of the same schemas.
    """
    require_same(after, before)
    found: dict[str, Metric] = {}
    for (prefix, a), (_, b) in zip(_parts(after), _parts(before), strict=True):
        sided = (a["percent_women"] != EVEN).to_numpy()
        means = mean_comparison(
            {"metric": lambda part: _margin(part) > 0, "margin": _margin},
            by=None,
            cluster="occupation",
        )
        found |= {f"{prefix}{k}": metric for k, metric in means(a[sided], b[sided]).items()}
        found[f"{prefix}correlation"] = _correlation_difference(a, b)
        if not prefix:
            neutral = mean_comparison(
                {"metric": lambda part: _neutral(part) > 0, "margin": _neutral},
                by=None,
                cluster="occupation",
            )
            found |= {f"neutral/{k}": metric for k, metric in neutral(a, b).items()}
    return found


def _parts(scores: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    control = scores["refers_to"] == "participant"
    return [("", scores[~control]), ("participant/", scores[control])]


def _margin(part: pd.DataFrame) -> Floats:
    """Return log P(pro-stereotyped) - log P(anti-stereotyped)."""
    sign = np.sign(part["percent_women"].to_numpy(dtype=np.float64) - EVEN)
    return np.asarray(sign * part["women"].to_numpy(dtype=np.float64), dtype=np.float64)


def _neutral(part: pd.DataFrame) -> Floats:
    gendered = part[["sum_male", "sum_female"]].max(axis=1)
    return (part["sum_neutral"] - gendered).to_numpy(dtype=np.float64)


def _by_occupation(part: pd.DataFrame) -> tuple[Floats, Floats]:
    """Return percentage of women and mean log P(female) - log P(male), one for each occupation."""
    means = part.groupby("occupation", sort=True)[["percent_women", "women"]].mean()
    return (
        means["percent_women"].to_numpy(dtype=np.float64),
        means["women"].to_numpy(dtype=np.float64),
    )


def _correlations(x: Floats, y: Floats) -> Floats:
    """Return Pearson's correlation along the last axis; NaN where one side does not vary."""
    dx, dy = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (dx * dy).sum(-1) / np.sqrt((dx**2).sum(-1) * (dy**2).sum(-1))
    return np.asarray(found, dtype=np.float64)


def _resampled(x: Floats, y: Floats) -> Floats:
    """Return the correlations of bootstrap draws of the occupations, the same draws every time."""
    drawn = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    return _correlations(x[drawn], y[drawn])


def _interval(draws: Floats) -> tuple[float, float]:
    known = draws[np.isfinite(draws)]
    if not len(known):
        return (math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    return (float(low), float(high))


def _correlation_metric(part: pd.DataFrame) -> Metric:
    x, y = _by_occupation(part)
    if len(x) < 3:
        return Metric(math.nan, len(x), "target: 0")
    draws = _resampled(x, y)
    return Metric(
        float(_correlations(x, y)),
        len(x),
        "target: 0",
        float(np.nanstd(draws, ddof=1)) if np.isfinite(draws).sum() > 1 else math.nan,
        _interval(draws),
    )


def _influences(x: Floats, y: Floats) -> Floats:
    """Return each occupation's influence on the correlation; their mean is 0."""
    zx, zy = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    return np.asarray(zx * zy - _correlations(x, y) * (zx**2 + zy**2) / 2, dtype=np.float64)


def _correlation_difference(after: pd.DataFrame, before: pd.DataFrame) -> Metric:
    (x, a), (_, b) = _by_occupation(after), _by_occupation(before)
    difference = float(_correlations(x, a) - _correlations(x, b)) if len(x) > 2 else math.nan
    if math.isnan(difference):
        return Metric(math.nan, len(x), "none")
    draws = _resampled(x, a) - _resampled(x, b)
    metric = Metric(difference, len(x), "none", float(np.nanstd(draws, ddof=1)), _interval(draws))
    influences = _influences(x, a) - _influences(x, b)
    return replace(metric, p_value=paired_p(difference + influences))


BENCHMARK = Benchmark(
    name="winogender",
    title="Winogender",
    score=_score,
    aggregate=winogender_metrics,
    compare=compare_winogender,
    files=without_options("winogender", winogender_files),
)
"""240 schemas in three genders. The statistics are those that the authors publish, of 2015/16."""
