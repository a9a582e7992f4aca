"""``biasdiff select``: the train examples taken as biased."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from biasdiff.attribution.selection import select as select_examples
from biasdiff.config import SelectionConfig
from biasdiff.errors import DataError
from biasdiff.pipeline.artifacts import Artifact, file_fingerprint

SELECTION_FILE = "selection.parquet"


def select(
    scores: str | Path,
    out: str | Path,
    *,
    fraction: float | None = None,
    top_k: int | None = None,
    method: Literal["top", "random"] = "top",
    seed: int = 0,
) -> pd.DataFrame:
    """Select the most influential examples and write ``id``, ``selected`` and ``reason``.

    Args:
        scores: ``scores.parquet`` of `attribute`.
        out: Parquet file to write.
        fraction: Share to select, in (0, 1]; 0.35 if neither this nor ``top_k`` is given.
        top_k: Number to select, instead.
        method: ``random`` is the baseline.
        seed: Of the random draw.
    """
    if fraction is None and top_k is None:
        fraction = SelectionConfig().fraction
    table = select_examples(_read(scores), fraction=fraction, top_k=top_k, method=method, seed=seed)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(out.name + ".tmp")
    table.to_parquet(work)
    work.rename(out)
    return table


def plan_select(
    scores: str | Path, out: str | Path, *, selection: SelectionConfig, seed: int
) -> Artifact:
    """Describe the selection of a run without running it."""

    def build(folder: Path) -> None:
        select(scores, folder / SELECTION_FILE, **selection.model_dump(), seed=seed)

    settings = selection.model_dump(mode="json") | {"seed": seed}
    return Artifact("select", Path(out), settings, {"scores": file_fingerprint(scores)}, build)


def _read(path: str | Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist",
            expected="the scores.parquet of 'biasdiff attribute'",
            remedy="check the path",
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({(str(error).splitlines() or [''])[0]})",
            expected="the scores.parquet of 'biasdiff attribute'",
            remedy="check the path, or run 'biasdiff attribute' again",
        ) from error
