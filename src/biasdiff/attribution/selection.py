"""Which train examples are taken as biased."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from biasdiff.errors import ConfigError, DataError


def selected_count(n: int, *, fraction: float | None = None, top_k: int | None = None) -> int:
    """Return how many of ``n`` examples a fraction or a number selects, at least one.

    Raises:
        ConfigError: If the fraction is outside (0, 1], ``top_k`` is outside 1 to n, or not exactly
            one of them is given.
    """
    if (fraction is None) == (top_k is None):
        raise ConfigError(
            f"fraction is {fraction} and top_k is {top_k}",
            expected="exactly one of them",
            remedy="give --fraction or --top-k",
        )
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ConfigError(
                f"fraction is {fraction}", expected="a number in (0, 1]", remedy="change --fraction"
            )
        return max(1, round(fraction * n))
    assert top_k is not None
    if not 1 <= top_k <= n:
        raise ConfigError(
            f"top_k is {top_k}", expected=f"a number from 1 to {n}", remedy="change --top-k"
        )
    return top_k


def select(
    scores: pd.DataFrame,
    *,
    fraction: float | None = None,
    top_k: int | None = None,
    method: Literal["top", "random"] = "top",
    seed: int = 0,
) -> pd.DataFrame:
    """Select the most influential examples, or as many random ones.

    Args:
        scores: With columns ``id`` and ``score``; ties go to the earlier row.
        fraction: Share to select, in (0, 1].
        top_k: Number to select, instead.
        method: ``random`` is the baseline.
        seed: Of the random draw.

    Returns:
        ``id``, ``selected`` (bool) and ``reason``, in the order of ``scores``.

    Raises:
        DataError: If a column is missing or a score is not finite.
    """
    for name in ("id", "score"):
        if name not in scores.columns:
            raise DataError(
                f"the scores have the columns {', '.join(map(repr, scores.columns))}",
                expected="'id' and 'score'",
                remedy="use the scores.parquet that 'biasdiff attribute' wrote",
            )
    values = scores["score"].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        name = scores["id"].iloc[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise DataError(
            f"the score of {name} is not finite",
            expected="finite scores",
            remedy="run 'biasdiff attribute' again",
        )
    n = len(values)
    count = selected_count(n, fraction=fraction, top_k=top_k)
    if method == "random":
        order = np.random.default_rng(seed).permutation(n)
    else:
        order = np.argsort(-values, kind="stable")
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(1, n + 1)
    chosen = rank <= count
    word = "random draw" if method == "random" else "influence rank"
    reasons = [
        f"{word} {r} of {n}, {'within' if c else 'beyond'} the first {count}"
        for r, c in zip(rank, chosen, strict=True)
    ]
    return pd.DataFrame({"id": scores["id"].astype(str), "selected": chosen, "reason": reasons})
