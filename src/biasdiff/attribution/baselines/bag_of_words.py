"""Bag of words: whether shared vocabulary alone explains an estimator's ranking."""

from __future__ import annotations

from functools import partial

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from biasdiff.attribution.baselines.words import WORD, require_words, stereotype_sentences
from biasdiff.attribution.bias_types import membership
from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.material import Material
from biasdiff.attribution.scores import Scores
from biasdiff.options import ESTIMATORS, checked_options


def _score(material: Material) -> Scores:
    texts, probes = material.texts, stereotype_sentences(material)
    require_words(probes, "probe sentences")
    types = membership([pair.bias_type for pair in material.pairs])
    vectorizer = CountVectorizer(token_pattern=WORD, dtype=np.float64).fit([*texts, *probes])
    train, probe = (normalize(vectorizer.transform(side)) for side in (texts, probes))
    return types.scores(np.asarray(train @ (probe.T @ types.members)), material.aggregate)


BAG_OF_WORDS = DirectEstimator(
    name="bag_of_words",
    formula="mean over probes j of the cosine between the word counts of i and of stereotype_j",
    score=_score,
    check=partial(checked_options, name="bag_of_words", defaults={}, section=ESTIMATORS),
    is_baseline=True,
    is_lexical=True,
)
