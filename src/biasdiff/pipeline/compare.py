"""``biasdiff compare``: paired differences of two evaluations, from their per-example scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from biasdiff.errors import DataError
from biasdiff.evaluation.registry import BENCHMARKS
from biasdiff.pipeline.artifacts import read_json, write_json
from biasdiff.pipeline.evaluate import scores_path


def compare(
    after: str | Path, before: str | Path, *, out: str | Path | None = None
) -> dict[str, Any]:
    """Return after - before for every benchmark both evaluations hold.

    Each figure comes with a paired bootstrap interval and a p-value: McNemar's exact test for
    preferences, a t-test (by cluster where examples share a source) for means. Over the bias types
    the p-values are adjusted by Holm's method, and only those count.

    Args:
        after: JSON that `evaluate` wrote; its Parquet files lie beside it.
        before: The other model's.
        out: JSON to write.

    Returns:
        ``after`` and ``before`` (the files), ``differences`` by benchmark, and the ``values`` of
        both.

    Raises:
        DataError: If a file is no evaluation, nothing was measured on both, or the examples differ.
    """
    records = [_record(Path(path)) for path in (after, before)]
    both = [name for name in records[0]["metrics"] if name in records[1]["metrics"]]
    shared = [name for name in both if name in BENCHMARKS]
    if not shared:
        raise DataError(
            f"{after} and {before} have no benchmark in common",
            expected="evaluations of both models on the same benchmarks",
            remedy="run 'biasdiff evaluate --bench ...' on both",
        )
    differences = {}
    for name in shared:
        frames = [_frame(Path(path), name) for path in (after, before)]
        found = BENCHMARKS[name].compare(*frames)
        differences[name] = {key: metric.to_json() for key, metric in found.items()}
    record = {
        "after": str(after),
        "before": str(before),
        "differences": differences,
        "values": [{name: record["metrics"][name] for name in shared} for record in records],
    }
    if out is not None:
        write_json(Path(out), record)
    return record


def _record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(
            f"{path} does not exist",
            expected="a JSON file of 'biasdiff evaluate --out'",
            remedy="check the path",
        )
    record = read_json(path)
    if not isinstance(record.get("metrics"), dict):
        raise DataError(
            f"{path} holds no 'metrics'",
            expected="a JSON file of 'biasdiff evaluate --out'",
            remedy="check the path",
        )
    return record


def _frame(path: Path, name: str) -> pd.DataFrame:
    file = scores_path(path, name)
    if not file.is_file():
        raise DataError(
            f"{file} does not exist",
            expected="the per-example scores beside the JSON file",
            remedy="keep both together, or evaluate again",
        )
    return pd.read_parquet(file)
