"""Influence with the curvature of the train loss taken into account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from biasdiff.attribution.curvature import curvature_options, precondition
from biasdiff.attribution.estimator import GradientEstimator, Precondition
from biasdiff.data.encoding import Encoding
from biasdiff.options import Options


def _preconditioner(method: str) -> Precondition:
    def apply(
        model: Any,
        encodings: Sequence[Encoding],
        directions: Mapping[str, Tensor],
        *,
        options: Options,
        max_tokens: int,
        seed: int,
    ) -> dict[str, Tensor]:
        settings = curvature_options(method, options)
        return precondition(
            model,
            encodings,
            directions,
            method=method,
            max_tokens=max_tokens,
            seed=seed,
            **settings,
        )

    return apply


DATAINF = GradientEstimator(
    name="datainf",
    formula="⟨∇ℓ_i, H⁻¹ v⟩, v the mean probe gradient, H⁻¹ the closed form of DataInf",
    probe="plain",
    train_side="sgd",
    normalize="none",
    curvature=_preconditioner("datainf"),
    check=lambda given: curvature_options("datainf", given),
)
EKFAC = GradientEstimator(
    name="ekfac",
    formula="⟨∇ℓ_i, H⁻¹ v⟩, v the mean probe gradient, H the eigenvalue-corrected K-FAC Fisher",
    probe="plain",
    train_side="sgd",
    normalize="none",
    curvature=_preconditioner("ekfac"),
    check=lambda given: curvature_options("ekfac", given),
)
