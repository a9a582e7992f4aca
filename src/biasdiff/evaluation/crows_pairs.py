"""CrowS-Pairs, from the user's data folder or the cache; it is never shipped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from biasdiff.options import Options, checked_options, wrong_option

EXPECTED = {"stereo": 1290, "antistereo": 218}


DEFAULTS = {"bias_bench": False}
"""``bias_bench``: run the pass of ``mean_bias_bench`` as well."""


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


def settings_of(given: Options) -> dict[str, Any]:
    """Return `DEFAULTS` with what is set otherwise.

    Raises:
        ConfigError: If a setting is unknown or out of range.
    """
    options = checked_options(given, "crows_pairs", DEFAULTS)
    if type(options["bias_bench"]) is not bool:
        raise wrong_option("crows_pairs", "bias_bench", options["bias_bench"], "true or false")
    return options


def _files(given: Options) -> Mapping[str, Path]:
    settings_of(given)
    return {"crows_pairs": crows_pairs_file()}


def _score(subject: Subject, inputs: Inputs) -> pd.DataFrame:
    settings = settings_of(inputs.options_of("crows_pairs"))
    return score_pairs(
        subject,
        inputs.first(load_crows_pairs()),
        bias_bench=settings["bias_bench"],
        name="crows_pairs",
    )


BENCHMARK = Benchmark(
    name="crows_pairs",
    title="CrowS-Pairs",
    score=_score,
    aggregate=preference_metrics,
    compare=compare_pairs,
    files=_files,
    core=True,
)
"""1,508 pairs. ``sum`` agrees with lm-evaluation-harness's ``crows_pairs_english`` scoring (which
runs on a revised set of 1,677 pairs), ``mean_bias_bench`` with bias-bench's for GPT-2."""
