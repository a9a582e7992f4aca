"""Length: whether an estimator merely prefers long or short examples."""

from __future__ import annotations

from functools import partial

import numpy as np

from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.material import Material
from biasdiff.attribution.scores import Scores, untyped_scores
from biasdiff.options import ESTIMATORS, checked_options


def _score(material: Material) -> Scores:
    return untyped_scores(np.array([e.targets for e in material.encodings], dtype=np.float64))


LENGTH = DirectEstimator(
    name="length",
    formula="number of target tokens of i, within the context length",
    score=_score,
    check=partial(checked_options, name="length", defaults={}, section=ESTIMATORS),
    is_baseline=True,
    is_lexical=True,
)
