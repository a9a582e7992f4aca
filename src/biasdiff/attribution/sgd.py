"""Plain gradients against plain probe gradients: cosine, and TracIn's dot product."""

from __future__ import annotations

from biasdiff.attribution.estimator import GradientEstimator

SGD_COS = GradientEstimator(
    name="sgd_cos",
    formula="mean over probes j of cos(∇ℓ_i, ∇ℓ(stereotype_j))",
    probe="plain",
    train_side="sgd",
)
SGD_DOT = GradientEstimator(
    name="sgd_dot",
    formula="mean over probes j of ⟨∇ℓ_i, ∇ℓ(stereotype_j)⟩ (TracIn)",
    probe="plain",
    train_side="sgd",
    normalize="none",
)
