"""Stereotype preference on the evaluation pairs of a run, the shipped test draw by default."""

from __future__ import annotations

import pandas as pd

from biasdiff.evaluation.benchmark import Benchmark, Inputs, Subject, without_options
from biasdiff.evaluation.stereotype_preference import (
    compare_pairs,
    preference_metrics,
    score_pairs,
)


def _score(subject: Subject, inputs: Inputs) -> pd.DataFrame:
    return score_pairs(subject, inputs.first(inputs.pairs), name="evaluation pairs")


BENCHMARK = Benchmark(
    name="stereotype_preference",
    title="evaluation pairs",
    score=_score,
    aggregate=preference_metrics,
    compare=compare_pairs,
    files=without_options("stereotype_preference"),
)
