"""CrowS-Pairs, from the user's data folder or the cache; it is never shipped."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from biasdiff.data.probe import ProbePair
from biasdiff.data.sources import crows_pairs
from biasdiff.data.sources.finding import another_version, get_files
from biasdiff.errors import DataError
from biasdiff.evaluation.benchmark import Benchmark, Inputs, Subject
from biasdiff.evaluation.stereotype_preference import (
    compare_pairs,
    preference_metrics,
    score_pairs,
)

EXPECTED = {"stereo": 1290, "antistereo": 218}


def crows_pairs_file() -> Path:
    """Return the file, fetching it if it is not at hand.

    Raises:
        DataError: If it can neither be found nor fetched; what to put where is said.
    """
    return get_files(crows_pairs.CORPUS)[crows_pairs.FILE.path]


def load_crows_pairs() -> list[ProbePair]:
    """Read CrowS-Pairs whole.

    Raises:
        DataError: If the file can neither be found nor fetched, or has other row counts than the
            original's 1290 stereo and 218 antistereo.
    """
    path = crows_pairs_file()
    found = crows_pairs.pairs({crows_pairs.FILE.path: path})
    pairs = [pair for pair in found if isinstance(pair, ProbePair)]
    counts = {d: sum(p.stereo_antistereo == d for p in pairs) for d in EXPECTED}
    if counts != EXPECTED:
        version = another_version(path)
        raise DataError(
            f"{path} has {counts['stereo']} stereo and {counts['antistereo']} antistereo rows"
            + (f" ({version})" if version else ""),
            expected="1290 and 218",
            remedy="use the original crows_pairs_anonymized.csv",
        )
    return pairs


def _score(subject: Subject, inputs: Inputs) -> pd.DataFrame:
    options = inputs.options.get("crows_pairs", {})
    return score_pairs(
        subject,
        inputs.first(load_crows_pairs()),
        bias_bench=bool(options.get("bias_bench", False)),
        name="crows_pairs",
    )


BENCHMARK = Benchmark(
    name="crows_pairs",
    title="CrowS-Pairs",
    score=_score,
    aggregate=preference_metrics,
    compare=compare_pairs,
    files=lambda: {"crows_pairs": crows_pairs_file()},
    core=True,
)
"""1,508 pairs. ``sum`` agrees with lm-evaluation-harness's ``crows_pairs_english`` scoring (which
runs on a revised set of 1,677 pairs), ``mean_bias_bench`` with bias-bench's for GPT-2."""
