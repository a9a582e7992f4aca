"""Ours: the train example's gradient against differences of stereotype and twin."""

from __future__ import annotations

from biasdiff.attribution.estimator import Estimator

CONTRAST = Estimator(
    name="contrast",
    probe="contrast",
    train_side="sgd",
    formula="mean over probe pairs j of cos(∇ℓ_i, ∇ℓ(stereotype_j) - ∇ℓ(twin_j))",
)
