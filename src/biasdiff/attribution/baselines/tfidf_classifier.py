"""A classifier on words and pairs of words, taught by the probe pairs."""

from __future__ import annotations

from functools import partial

from sklearn.feature_extraction.text import TfidfVectorizer

from biasdiff.attribution.baselines.words import WORD, require_words, stereotype_sentences
from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.material import Material
from biasdiff.attribution.pair_classifier import fit_pair_classifier, pair_groups
from biasdiff.attribution.scores import Scores, untyped_scores
from biasdiff.options import ESTIMATORS, checked_options


def _score(material: Material) -> Scores:
    more, less = stereotype_sentences(material), [pair.sent_less for pair in material.pairs]
    require_words([*more, *less], "probe sentences")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD).fit([*more, *less])
    classifier = fit_pair_classifier(
        vectorizer.transform(more),
        vectorizer.transform(less),
        pair_groups(material.pairs),
        seed=material.seed,
        standardise=False,
        name="tfidf_classifier",
    )
    return untyped_scores(classifier.decide(vectorizer.transform(material.texts)))


TFIDF_CLASSIFIER = DirectEstimator(
    name="tfidf_classifier",
    formula="log-odds of stereotype against twin for i, by tf-idf of words and pairs of words",
    score=_score,
    check=partial(checked_options, name="tfidf_classifier", defaults={}, section=ESTIMATORS),
    needs_twins=True,
    is_baseline=True,
    is_lexical=True,
)
"""Vocabulary and document frequencies are the probe pairs', whatever the train set."""
