"""Scores that need no gradient, in one plain dict: what an estimator must beat to be worth it."""

from __future__ import annotations

from biasdiff.attribution.baselines.bag_of_words import BAG_OF_WORDS
from biasdiff.attribution.baselines.bm25 import BM25
from biasdiff.attribution.baselines.classifier import CLASSIFIER
from biasdiff.attribution.baselines.length import LENGTH
from biasdiff.attribution.baselines.perplexity import PERPLEXITY
from biasdiff.attribution.baselines.random import RANDOM
from biasdiff.attribution.baselines.rep_classifier import REP_CLASSIFIER
from biasdiff.attribution.baselines.rep_sim import REP_SIM
from biasdiff.attribution.baselines.tfidf_classifier import TFIDF_CLASSIFIER
from biasdiff.attribution.estimator import DirectEstimator

BASELINES: dict[str, DirectEstimator] = {
    estimator.name: estimator
    for estimator in (
        RANDOM,
        LENGTH,
        PERPLEXITY,
        BAG_OF_WORDS,
        BM25,
        TFIDF_CLASSIFIER,
        REP_SIM,
        REP_CLASSIFIER,
        CLASSIFIER,
    )
}
