"""How easily a mixture's classes are told apart without any attribution."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

FOLDS = 5


@dataclass(frozen=True)
class Separability:
    """AUROC of two cues at telling biased from other rows; 0.5 is no better than chance.

    Attributes:
        bag_of_words: Logistic regression on word counts, cross-validated in five folds that keep
            each group whole; NaN where there are too few groups.
        length: Number of words alone, longer counting as more biased.
    """

    bag_of_words: float
    length: float


def separability(
    texts: Sequence[str], truth: Sequence[int], groups: Sequence[str], *, seed: int = 0
) -> Separability:
    """Measure both cues on labelled texts of two classes.

    Args:
        texts: The rows.
        truth: 1 biased, 0 not.
        groups: Rows of one group are never on both sides of a fold.
        seed: Of the folds.
    """
    labels = np.asarray(truth)
    if len(set(truth)) < 2:
        return Separability(float("nan"), float("nan"))
    lengths = np.array([len(text.split()) for text in texts])
    by_length = float(roc_auc_score(labels, lengths))
    if (
        min(len({g for g, t in zip(groups, truth, strict=True) if t == side}) for side in (0, 1))
        < FOLDS
    ):
        return Separability(float("nan"), by_length)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cross_val_predict(
            model, list(texts), labels, cv=folds, groups=list(groups), method="predict_proba"
        )
    return Separability(float(roc_auc_score(labels, found[:, 1])), by_length)
