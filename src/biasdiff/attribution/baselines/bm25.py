"""BM25: what a search engine would find for the probe's stereotype sentences."""

from __future__ import annotations

from functools import partial

import bm25s
import numpy as np

from biasdiff.attribution.baselines.words import require_words, stereotype_sentences, words_of
from biasdiff.attribution.bias_types import membership
from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.material import Material
from biasdiff.attribution.scores import Scores
from biasdiff.options import ESTIMATORS, checked_options

K1 = 1.5
B = 0.75


def _score(material: Material) -> Scores:
    """Return mean BM25 by bias type.

    BM25 is a sum over the query's words, so the queries of a bias type are asked as one. Common
    words are kept, since pronouns are among them; their low weight sees to the rest.
    """
    probes = stereotype_sentences(material)
    require_words(probes, "probe sentences")
    require_words(material.texts, "train texts")
    types = membership([pair.bias_type for pair in material.pairs])
    index = bm25s.BM25(k1=K1, b=B, method="lucene", dtype="float64")
    index.index([words_of(text) for text in material.texts], show_progress=False)
    sums = np.zeros((len(material.texts), len(types.names)))
    for column, name in enumerate(types.names):
        own = [p.sent_more for p in material.pairs if p.bias_type == name]
        query = [word for sentence in own for word in words_of(sentence)]
        sums[:, column] = index.get_scores_from_ids(index.get_tokens_ids(query))
    return types.scores(sums, material.aggregate)


BM25 = DirectEstimator(
    name="bm25",
    formula="mean over probes j of BM25 of i as a document, stereotype_j as the query",
    score=_score,
    check=partial(checked_options, name="bm25", defaults={}, section=ESTIMATORS),
    is_baseline=True,
    is_lexical=True,
)
"""Σ over the query's words w of idf(w) f / (f + k1 (1 - b + b length / mean length)), f the number
of times w is in the document, idf = log(1 + (n - n_w + 0.5) / (n_w + 0.5)) with n_w of n documents
holding w: Lucene's form (Kamphuis et al., 2020), which lacks the constant factor k1 + 1. The train
set is the collection, so its mean length and document frequencies count."""
