"""Random scores: what every estimator must beat."""

from __future__ import annotations

from functools import partial

import numpy as np

from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.material import Material
from biasdiff.attribution.scores import Scores, untyped_scores
from biasdiff.options import ESTIMATORS, checked_options


def _score(material: Material) -> Scores:
    return untyped_scores(np.random.default_rng(material.seed).random(len(material.examples)))


RANDOM = DirectEstimator(
    name="random",
    formula="uniform between 0 and 1, drawn from the seed",
    score=_score,
    check=partial(checked_options, name="random", defaults={}, section=ESTIMATORS),
    is_baseline=True,
)
