"""Tasks of lm-evaluation-harness, run through its Python API on the loaded model.

The package is optional: ``pip install 'biasdiff[lm-eval]'``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from biasdiff.errors import ConfigError, DataError, nearest
from biasdiff.evaluation.benchmark import Benchmark, Inputs, Subject, require_same
from biasdiff.functional.statistics import (
    Floats,
    bootstrap_interval,
    holm,
    mcnemar,
    paired_p,
)
from biasdiff.options import Options, checked_options, wrong_option
from biasdiff.progress import say
from biasdiff.results import Direction, Metric

NAME = "lm_eval"
DEFAULTS: dict[str, Any] = {"tasks": (), "limit": None, "batch_size": 8, "include": None}
NO_FILTER = "none"
WITHOUT_DIRECTION = ("pct_stereotype",)
"""The harness calls lower better, although a half is ideal."""
_SAME_FIGURE = 1e-6
_COLUMNS = ("row", "task", "doc_id", "metric", "value", "weight", "aggregation", "direction")


@dataclass(frozen=True)
class Aggregation:
    """A figure made of r = Σ values / Σ weights.

    Attributes:
        figure: Of r; elementwise.
        slope: Its derivative at r, for the standard error.
        is_ratio: Whether two models are compared by their ratio, because the figure is exp of a
            mean.
    """

    figure: Callable[[Any], Any]
    slope: Callable[[float], float]
    is_ratio: bool = False


AGGREGATIONS = {
    "mean": Aggregation(lambda r: r, lambda r: 1.0),
    "perplexity": Aggregation(lambda r: np.exp(-r), lambda r: -math.exp(-r), is_ratio=True),
    "bits": Aggregation(lambda r: -r / math.log(2), lambda r: -1 / math.log(2)),
}
"""The aggregations of the harness that per-sample values allow: ``mean``; ``perplexity`` and
``weighted_perplexity``, exp(-Σ log-likelihood / Σ units); ``bits_per_byte``, the same in bits."""


def require_installed() -> None:
    """Refuse to go on where the harness is not installed.

    Raises:
        ConfigError: What to install is said.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"benchmark {NAME!r} runs lm-evaluation-harness, which cannot be imported ({error})",
            expected="the package lm-eval",
            remedy="run pip install 'biasdiff[lm-eval]'",
        ) from error


def score_tasks(subject: Subject, inputs: Inputs) -> pd.DataFrame:
    """Run the tasks named in ``options["lm_eval"]``.

    The options are ``tasks`` (names of tasks, groups or tags), ``limit`` (documents of each task at
    most, else ``evaluate.limit``), ``batch_size`` (default 8) and ``include`` (a folder with
    task files of one's own). A metric is kept where its per-sample values give the harness's own
    figure by one of `AGGREGATIONS`; others (F1, BLEU, Brier score) are left out, and that is said.
    Figures of groups are not taken over.

    Returns:
        One row per task, document and metric: ``row`` (their names, joined), ``task``, ``doc_id``,
        ``metric`` (with the name of the filter behind a comma where there is one), ``value``,
        ``weight`` (1, or the words or bytes of a perplexity), ``aggregation`` and ``direction``.

    Raises:
        ConfigError: If the harness is not installed, an option is unknown, or a task is not named
            or unknown (the nearest is named).
        DataError: If the data of a task cannot be had, or no metric could be kept.
    """
    require_installed()
    options = settings_of(inputs.options_of(NAME))
    tasks = list(options["tasks"])
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = _task_manager(options)
    model = HFLM(
        pretrained=subject.model,
        tokenizer=copy.deepcopy(subject.tokenizer),  # the harness sets a padding token on it
        max_length=subject.max_length,
        batch_size=options["batch_size"],
    )
    try:
        results = simple_evaluate(
            model=model,
            tasks=tasks,
            limit=options["limit"] or inputs.limit,
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,  # standard errors are computed from the frame
        )
    except OSError as error:  # all of what the hub and datasets raise for absent data is one
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"the data of {', '.join(tasks)} cannot be had ({type(error).__name__}: {reason})",
            expected="a network, or the data sets in the cache of the hub",
            remedy="run it where there is a network, with HF_HUB_OFFLINE unset",
        ) from error
    return frame_of(results)


def settings_of(given: Options) -> dict[str, Any]:
    """Return `DEFAULTS` with what is set otherwise.

    Raises:
        ConfigError: If no task is named, or a setting is unknown or out of range.
    """
    options = checked_options(given, NAME, DEFAULTS)
    tasks = options["tasks"]
    listed = isinstance(tasks, list | tuple) and all(isinstance(name, str) for name in tasks)
    if not tasks or not listed:
        expected = "a list of names of tasks, for example [crows_pairs_english]"
        raise wrong_option(NAME, "tasks", tasks, expected)
    for name in ("limit", "batch_size"):
        value = options[name]
        if value is not None and (type(value) is not int or value < 1):
            raise wrong_option(NAME, name, value, "a whole number from 1")
    folder = options["include"]
    if folder is not None and not Path(folder).is_dir():
        raise wrong_option(NAME, "include", folder, "a folder of task files")
    return options


def _task_manager(options: Mapping[str, Any]) -> Any:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=options["include"])
    for name in options["tasks"]:
        if name not in manager.all_tasks:
            raise ConfigError(
                f"lm-evaluation-harness has no task {name!r}{nearest(name, manager.all_tasks)}",
                expected="names of its tasks, groups or tags",
                remedy=f"mend evaluate.options.{NAME}.tasks; 'lm-eval ls tasks' lists them",
            )
    return manager


def frame_of(results: Mapping[str, Any]) -> pd.DataFrame:
    """Return the per-sample values in what ``simple_evaluate`` returns; see `score_tasks`.

    Raises:
        DataError: If no metric could be kept.
    """
    rows: list[tuple[Any, ...]] = []
    left_out: list[str] = []
    for task, samples in results["samples"].items():
        higher = results.get("higher_is_better", {}).get(task, {})
        for key, metric, chosen_filter in _metrics(results["results"][task]):
            name = metric if chosen_filter == NO_FILTER else f"{metric},{chosen_filter}"
            chosen = [
                sample
                for sample in samples
                if sample.get("filter", chosen_filter) == chosen_filter and metric in sample
            ]
            parts = [_value_and_weight(sample[metric]) for sample in chosen]
            known = [part for part in parts if part is not None]
            aggregation = None
            if known and len(known) == len(parts):
                values, weights = np.array(known).T
                aggregation = _aggregation(values, weights, results["results"][task][key])
            if aggregation is None:
                left_out.append(f"{task}/{name}")
                continue
            direction = _direction(metric, higher.get(metric))
            for s, part in zip(chosen, known, strict=True):
                place = (f"{task}/{s['doc_id']}/{name}", task, int(s["doc_id"]), name)
                rows.append((*place, *part, aggregation, direction))
    if left_out:
        say(f"  {NAME}: {', '.join(left_out)} left out: not a mean of values of samples")
    if not rows:
        raise DataError(
            f"no figure of {', '.join(results['samples'])} is a mean of values of samples",
            expected="at least one that can be recomputed",
            remedy="choose other tasks, or run the harness by itself",
        )
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _metrics(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield key, metric and filter of a task's figures, which stand beside other facts."""
    for key in figures:
        metric, comma, chosen_filter = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            yield key, metric, chosen_filter


def _value_and_weight(value: Any) -> tuple[float, float] | None:
    """Return a sample's value and its weight; None where it is neither number nor two of them."""
    parts = value if isinstance(value, tuple | list) else (value, 1.0)
    if len(parts) != 2:
        return None
    try:
        return float(parts[0]), float(parts[1])
    except (TypeError, ValueError):
        return None


def _aggregation(values: Floats, weights: Floats, figure: Any) -> str | None:
    """Return the aggregation that gives the harness's figure, None if none does."""
    if not isinstance(figure, int | float | np.number) or not weights.sum() > 0:
        return None
    ratio = values.sum() / weights.sum()
    for name, aggregation in AGGREGATIONS.items():
        with np.errstate(over="ignore"):
            ours = float(aggregation.figure(ratio))
        if math.isclose(ours, float(figure), rel_tol=_SAME_FIGURE, abs_tol=1e-9):
            return name
    return None


def _direction(metric: str, higher_is_better: bool | None) -> Direction:
    if higher_is_better is None or metric in WITHOUT_DIRECTION:
        return "none"
    return "higher_is_better" if higher_is_better else "lower_is_better"


def task_metrics(scores: pd.DataFrame) -> dict[str, Metric]:
    """Return ``TASK/METRIC`` of every task and metric of the frame of `score_tasks`.

    The value is the harness's, in its units (shares, not percent). The standard error is that of
    the ratio r = Σ v / Σ w by the delta method, |f'(r)| √(n/(n-1) Σ (v - r w)²) / Σ w; for means
    this is s / √n, as in the harness. The interval is the bootstrap's over documents.
    """
    found = {}
    for task, metric, part in _parts(scores):
        aggregation = AGGREGATIONS[part["aggregation"].iloc[0]]
        values, weights = _numbers(part)
        n, ratio = len(values), values.sum() / weights.sum()
        error = math.nan
        with np.errstate(over="ignore"):
            if n > 1:
                rest = values - ratio * weights
                error = math.sqrt(n / (n - 1) * np.square(rest).sum()) / weights.sum()
                error = abs(aggregation.slope(ratio)) * error
            ends = [float(aggregation.figure(end)) for end in bootstrap_interval(values, weights)]
            value = float(aggregation.figure(ratio))
        found[f"{task}/{metric}"] = Metric(
            value, n, part["direction"].iloc[0], error, (min(ends), max(ends))
        )
    return found


def compare_tasks(after: pd.DataFrame, before: pd.DataFrame) -> dict[str, Metric]:
    """Return after - before of every task and metric, paired by document.

    Means are compared by their difference in the harness's units (p by McNemar's exact test where
    all values are 0 or 1, by t otherwise), perplexities by after / before,
    ``TASK/METRIC/perplexity_ratio``. Where a metric belongs to several tasks its p-values are
    adjusted over them by Holm's method.

    Raises:
        DataError: If the frames are not of the same samples.
    """
    require_same(after, before)
    found: dict[str, Metric] = {}
    by_metric: dict[str, list[str]] = {}
    for (task, metric, a), (_, _, b) in zip(_parts(after), _parts(before), strict=True):
        aggregation = AGGREGATIONS[a["aggregation"].iloc[0]]
        (new, weights), (old, _) = _numbers(a), _numbers(b)
        change = new - old
        ratio = change.sum() / weights.sum()
        shown = (aggregation.figure(x) for x in (ratio, *bootstrap_interval(change, weights)))
        with np.errstate(over="ignore"):
            value, low, high = map(float, shown)
        yes_no = bool(np.isin(new, (0, 1)).all() and np.isin(old, (0, 1)).all())
        name = f"{task}/{metric}" + ("/perplexity_ratio" if aggregation.is_ratio else "")
        found[name] = Metric(
            value,
            len(change),
            "none",
            interval=(min(low, high), max(low, high)),
            p_value=mcnemar(new == 1, old == 1) if yes_no else paired_p(change),
        )
        by_metric.setdefault(metric, []).append(name)
    for names in by_metric.values():
        if len(names) > 1:
            adjusted = holm([found[name].p_value or 0.0 for name in names])
            for name, p in zip(names, adjusted, strict=True):
                found[name] = replace(found[name], p_adjusted=p)
    return found


def _parts(scores: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for (task, metric), part in scores.groupby(["task", "metric"], sort=False):
        yield str(task), str(metric), part


def _numbers(part: pd.DataFrame) -> tuple[Floats, Floats]:
    return part["value"].to_numpy(dtype=np.float64), part["weight"].to_numpy(dtype=np.float64)


def _files(given: Options) -> Mapping[str, Path]:
    """Check everything that can be checked before anything is scored."""
    require_installed()
    _task_manager(settings_of(given))
    return {}


BENCHMARK = Benchmark(
    name=NAME,
    title="lm-evaluation-harness",
    score=score_tasks,
    aggregate=task_metrics,
    compare=compare_tasks,
    files=_files,
    extra="lm-eval",
)
"""Any of its tasks, ``evaluate.options.lm_eval.tasks`` by name."""
