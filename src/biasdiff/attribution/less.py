"""The paper's estimator: Γ of the train example against plain probe gradients; and its kin."""

from __future__ import annotations

from biasdiff.attribution.estimator import GradientEstimator

LESS = GradientEstimator(
    name="less",
    formula="mean over probes j of cos(Γ_i, ∇ℓ(stereotype_j)), Γ as LESS implements it",
    probe="plain",
    train_side="less",
)
ADAM = GradientEstimator(
    name="adam",
    formula="mean over probes j of cos(Γ_i, ∇ℓ(stereotype_j)), Γ the step Adam would really take",
    probe="plain",
    train_side="adam",
)
ADAM_V = GradientEstimator(
    name="adam_v",
    formula="mean over probes j of cos(g_i / (sqrt(β2 v + (1 - β2) g_i²) + ε), ∇ℓ(stereotype_j))",
    probe="plain",
    train_side="adam_v",
)
