"""Ours: the train example's gradient against differences of stereotype and twin."""

from __future__ import annotations

from biasdiff.attribution.estimator import GradientEstimator

CONTRAST = GradientEstimator(
    name="contrast",
    formula="mean over probe pairs j of cos(∇ℓ_i, ∇ℓ(stereotype_j) - ∇ℓ(twin_j))",
    probe="contrast",
    train_side="sgd",
)
