"""A linear classifier of stereotype sentences against their twins, for any kind of features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from biasdiff.attribution.scores import Floats
from biasdiff.data.probe import ProbePair
from biasdiff.errors import DataError
from biasdiff.progress import say, task

FOLDS = 5
STRENGTHS = tuple(10.0**power for power in range(-6, 5))

Features = NDArray[Any] | sparse.csr_matrix
"""[m, d], one sentence per row."""


@dataclass(frozen=True)
class PairClassifier:
    """f(x) = ⟨w, x⟩ + b, the log-odds that x belongs to a stereotype sentence.

    Attributes:
        weights: w [d], in the units of the features as they were given.
        intercept: b.
        accuracy: Share of held-out pairs whose stereotype sentence has the higher f, ties counted
            half, [0, 1]; chance is 0.5. A little flattering, as the same folds chose the strength.
        strength: C, the inverse of the L2 penalty.
    """

    weights: Floats
    intercept: float
    accuracy: float
    strength: float

    def decide(self, features: Features) -> Floats:
        """Return f of every row, [n]."""
        return np.asarray(features @ self.weights + self.intercept, dtype=np.float64)


def fit_pair_classifier(
    more: Features,
    less: Features,
    groups: Sequence[str],
    *,
    seed: int,
    standardise: bool = True,
    name: str = "classifier",
) -> PairClassifier:
    """Fit a logistic regression with an L2 penalty on pairs, stereotype = 1 against twin = 0.

    The penalty is the one of `STRENGTHS` with the least log-loss on held-out sentences, the
    strongest of equals. A group is never on both sides of a fold, nor is a pair, so that a
    classifier that knows a stereotype by its topic gains nothing from that.

    Args:
        more: Features of the stereotype sentences, [m, d].
        less: Of their twins, in the same order.
        groups: Of each pair, [m]; see `pair_groups`.
        seed: Of the folds.
        standardise: Bring every feature to mean 0 and variance 1 over the sentences that are
            fitted; for dense features.
        name: Shown with the progress.

    Raises:
        DataError: If the pairs make fewer than two groups.
    """
    distinct = len(set(groups))
    if distinct < 2:
        raise DataError(
            f"{name}: the probe pairs make {distinct} group{'s' * (distinct != 1)}",
            expected="2 or more stereotypes, some of which can be held out",
            remedy="give more probe pairs, or mend their column stereotype_id",
        )
    both = _stacked(more, less)
    labels = np.repeat([1, 0], len(groups))
    owners = np.tile(np.asarray(groups, dtype=np.str_), 2)
    folds = StratifiedGroupKFold(min(FOLDS, distinct), shuffle=True, random_state=seed)
    splits = list(folds.split(both, labels, owners))
    with warnings.catch_warnings():
        # Weak penalties may not converge in time, and lose; the winner's own fit still warns.
        warnings.simplefilter("ignore", ConvergenceWarning)
        strength, accuracy = _choose(both, labels, splits, standardise, name)
    model = _model(strength, standardise).fit(both, labels)
    fitted = model.named_steps["fit"]
    weights, intercept = fitted.coef_[0].astype(np.float64), float(fitted.intercept_[0])
    if standardise:
        scaler = model.named_steps["scale"]
        weights = weights / scaler.scale_
        intercept -= float(weights @ scaler.mean_)
    say(f"  {name}: {accuracy:.1%} of held-out pairs told right, C = {strength:g}")
    return PairClassifier(weights, intercept, accuracy, strength)


def pair_groups(pairs: Sequence[ProbePair]) -> list[str]:
    """Return each pair's stereotype, and a group of its own for a pair that names none."""
    return [pair.stereotype_id or f"pair {number}" for number, pair in enumerate(pairs)]


def paired_accuracy(more: Floats, less: Floats) -> float:
    """Return the share of pairs whose stereotype sentence scores above its twin, ties as half.

    Args:
        more: Scores of the stereotype sentences, [m].
        less: Scores of their twins, [m].
    """
    return float(np.mean((more > less) + 0.5 * (more == less)))


def _choose(
    both: Features, labels: NDArray[Any], splits: Any, standardise: bool, name: str
) -> tuple[float, float]:
    """Return the best strength and the accuracy it reaches."""
    signs = 2.0 * labels - 1
    lowest, best, accuracy = np.inf, STRENGTHS[0], np.nan
    with task(f"{name}: penalties", len(STRENGTHS)) as progress:
        for strength in STRENGTHS:
            model = _model(strength, standardise)
            held_out = cross_val_predict(model, both, labels, cv=splits, method="decision_function")
            loss = float(np.logaddexp(0, -signs * held_out).mean())
            if loss < lowest:
                more, less = np.split(held_out, 2)
                lowest, best = loss, strength
                accuracy = paired_accuracy(more, less)
            progress.advance()
    return best, accuracy


def _model(strength: float, standardise: bool) -> Pipeline:
    scale = StandardScaler() if standardise else "passthrough"
    return Pipeline([("scale", scale), ("fit", LogisticRegression(C=strength, max_iter=2000))])


def _stacked(more: Features, less: Features) -> Features:
    sides: list[Any] = [more, less]
    if sparse.issparse(more):
        stacked: Features = sparse.vstack(sides, format="csr")
        return stacked
    return np.concatenate(sides).astype(np.float64)
