"""What a benchmark is: per-example scores of a model, and figures made of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from biasdiff.data.probe import ProbePair
from biasdiff.data.shipped_sets import Fact
from biasdiff.errors import DataError
from biasdiff.functional.statistics import (
    Floats,
    bootstrap_interval,
    holm,
    mcnemar,
    paired_p,
    proportion_interval,
    standard_error,
)
from biasdiff.options import Options, checked_options
from biasdiff.results import Direction, Metric


@dataclass(frozen=True)
class Subject:
    """The model that is measured.

    Attributes:
        model: Causal language model, in evaluation mode on its device.
        tokenizer: Its tokenizer.
        max_length: Context length in tokens.
        max_tokens: Token budget of a batch.
    """

    model: Any
    tokenizer: Any
    max_length: int
    max_tokens: int


@dataclass(frozen=True)
class Inputs:
    """What benchmarks are run on, beside the corpora that they find themselves.

    Attributes:
        pairs: Evaluation pairs.
        texts: Held-out texts for perplexity.
        facts: Facts for cloze.
        limit: Examples of each benchmark at most, the first ones; None for all.
        seed: Of permutations and draws.
        options: Further settings by benchmark, ``{"seat": {"layer": 5}}``.
    """

    pairs: Sequence[ProbePair] = ()
    texts: Sequence[str] = ()
    facts: Sequence[Fact] = ()
    limit: int | None = None
    seed: int = 0
    options: Mapping[str, Options] = field(default_factory=dict)

    def options_of(self, benchmark: str) -> Options:
        """Return what is set for a benchmark."""
        return self.options.get(benchmark, {})

    def first(self, items: Sequence[Any]) -> list[Any]:
        """Return the items that `limit` allows."""
        return list(items if self.limit is None else items[: self.limit])


Score = Callable[[Subject, Inputs], pd.DataFrame]
Aggregate = Callable[[pd.DataFrame], dict[str, Metric]]
Compare = Callable[[pd.DataFrame, pd.DataFrame], dict[str, Metric]]


@dataclass(frozen=True)
class Benchmark:
    """A measurement with a name.

    Attributes:
        name: On the command line and in results.
        title: For people.
        score: Runs the model; one row for each example, with a column ``row`` that names it.
        aggregate: Figures from that frame alone, so that they can be recomputed from the file.
        compare: Paired differences of two such frames, after - before.
        files: Files it reads with some options, for fingerprints. Called before any model runs:
            raises `ConfigError` for an option it does not know or that is out of range, and
            `DataError` where a file cannot be had.
        core: Part of ``--bench core``.
        extra: Name of the optional extra that it needs, empty for none.
    """

    name: str
    title: str
    score: Score
    aggregate: Aggregate
    compare: Compare
    files: Callable[[Options], Mapping[str, Path]] = dict
    core: bool = False
    extra: str = ""


def without_options(
    benchmark: str, files: Callable[[], Mapping[str, Path]] = dict
) -> Callable[[Options], Mapping[str, Path]]:
    """Return the ``files`` of a benchmark that has no options and refuses any that is given."""

    def checked_files(given: Options) -> Mapping[str, Path]:
        checked_options(given, benchmark, {})
        return files()

    return checked_files


def mean_metric(
    values: pd.Series[float] | Floats,
    direction: Direction = "target: 0",
    clusters: Sequence[Hashable] | None = None,
) -> Metric:
    """Return a mean with its standard error and bootstrap interval.

    Args:
        values: One for each example.
        direction: How to read it.
        clusters: Examples of one cluster depend on each other; None if none do.
    """
    array: Floats = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Metric(float("nan"), 0, direction)
    return Metric(
        float(array.mean()),
        len(array),
        direction,
        standard_error(array, clusters),
        bootstrap_interval(array, clusters=clusters),
    )


def percentage_metric(
    hits: Any, direction: Direction = "target: 50", clusters: Sequence[Hashable] | None = None
) -> Metric:
    """Return the percentage of hits: Wilson's interval, or with clusters that of the bootstrap."""
    array = np.asarray(hits, dtype=bool)
    n, count = len(array), int(array.sum())
    if clusters is not None and len(set(clusters)) < n:
        return mean_metric(100.0 * array, direction, clusters)
    low, high = proportion_interval(count, n)
    share = count / n if n else float("nan")
    error = float(np.sqrt(share * (1 - share) / n)) if n else float("nan")
    return Metric(100 * share, n, direction, 100 * error, (100 * low, 100 * high))


def clusters_of(frame: pd.DataFrame, column: str) -> list[Hashable] | None:
    """Return the clusters a column names; None where it is absent, empty or names none twice.

    An empty name is a cluster of its own.
    """
    if column not in frame:
        return None
    names = [name or f"row {i}" for i, name in enumerate(frame[column].tolist())]
    return names if len(set(names)) < len(names) else None


def require_same(after: pd.DataFrame, before: pd.DataFrame) -> None:
    """Refuse frames that are not of the same examples in the same order.

    Raises:
        DataError: If they are not.
    """
    if len(after) != len(before) or not (after["row"].to_numpy() == before["row"].to_numpy()).all():
        raise DataError(
            f"the two results hold {len(after)} and {len(before)} examples, or other rows",
            expected="scores of the same examples",
            remedy="evaluate both models on the same files",
        )


def difference_metric(
    after: Any, before: Any, clusters: Sequence[Hashable] | None = None
) -> Metric:
    """Return the mean of after - before with paired interval and p.

    Booleans are compared in percent and by McNemar's exact test (without clusters).
    """
    a, b = np.asarray(after), np.asarray(before)
    yes_no = a.dtype == bool
    values = (a.astype(np.float64) - b.astype(np.float64)) * (100.0 if yes_no else 1.0)
    p = mcnemar(a, b) if yes_no and clusters is None else paired_p(values, clusters)
    return replace(mean_metric(values, "none", clusters), p_value=p)


def mean_comparison(
    columns: Mapping[str, Callable[[pd.DataFrame], Any]],
    *,
    by: str | None = "bias_type",
    cluster: str = "",
) -> Compare:
    """Return a comparison of means of per-example values, overall and by group.

    The p-values of the groups are adjusted by Holm's method, for each figure on its own.

    Args:
        columns: By the name of the figure, how to read its per-example values from a frame.
        by: Column of the groups; None for none.
        cluster: Column that names what depends on each other.
    """

    def compare(after: pd.DataFrame, before: pd.DataFrame) -> dict[str, Metric]:
        require_same(after, before)
        clusters = clusters_of(after, cluster)
        found: dict[str, Metric] = {}
        for name, values in columns.items():
            a, b = np.asarray(values(after)), np.asarray(values(before))
            found[name] = difference_metric(a, b, clusters)
            if by is None or by not in after:
                continue
            groups = after[by].to_numpy()
            parts = {}
            for group in sorted(set(groups.tolist())):
                chosen = groups == group
                inside = None
                if clusters is not None:
                    inside = [c for c, take in zip(clusters, chosen, strict=True) if take]
                    inside = inside if len(set(inside)) < len(inside) else None
                parts[f"{name}/{group}"] = difference_metric(a[chosen], b[chosen], inside)
            adjusted = holm([m.p_value if m.p_value is not None else 1.0 for m in parts.values()])
            for (key, metric), p in zip(parts.items(), adjusted, strict=True):
                found[key] = replace(metric, p_adjusted=p)
        return found

    return compare
