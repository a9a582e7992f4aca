"""The paper's estimator: Γ of the train example against plain probe gradients."""

from __future__ import annotations

from biasdiff.attribution.estimator import Estimator

LESS = Estimator(
    name="less",
    probe="plain",
    train_side="less",
    formula="mean over probes j of cos(Γ_i, ∇ℓ(stereotype_j)), Γ as LESS implements it",
)
