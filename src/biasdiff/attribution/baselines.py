"""Scores that need no gradient: what an estimator must beat to be worth its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

Baseline = Callable[[Sequence[str], Sequence[str], int], NDArray[np.float64]]
"""``(train texts, probe stereotype sentences, seed) -> scores [n]``."""


def random_scores(texts: Sequence[str], probes: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Return uniform random scores."""
    return np.random.default_rng(seed).random(len(texts))


def length_scores(texts: Sequence[str], probes: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Return the number of words: longer counts as more suspect."""
    return np.array([len(text.split()) for text in texts], dtype=np.float64)


def bag_of_words_scores(
    texts: Sequence[str], probes: Sequence[str], seed: int
) -> NDArray[np.float64]:
    """Return the mean cosine of word counts between a text and the probe's stereotype sentences."""
    vectorizer = CountVectorizer(lowercase=True).fit([*texts, *probes])
    train = normalize(vectorizer.transform(texts).astype(np.float64))
    mean_probe = normalize(vectorizer.transform(probes).astype(np.float64)).mean(axis=0)
    return np.asarray(train @ np.asarray(mean_probe).ravel(), dtype=np.float64)


BASELINES: dict[str, Baseline] = {
    "random": random_scores,
    "length": length_scores,
    "bag_of_words": bag_of_words_scores,
}
