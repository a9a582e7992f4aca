"""Inverse curvature times a direction, in the closed forms of DataInf and of EK-FAC.

Both treat every weight by itself, as if the curvature between two weights were zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def datainf_damping(total_squared_norm: float, count: int, dimension: int, factor: float) -> float:
    """Return λ = factor · (1/n) Σ_i ‖g_i‖² / d, a share of the mean squared gradient entry.

    Args:
        total_squared_norm: Σ_i ‖g_i‖² of one weight.
        count: n.
        dimension: d, the number of the weight's entries.
        factor: 0.1 in Kwon et al. 2024 (DataInf).
    """
    return factor * total_squared_norm / (count * dimension)


def datainf_correction(gradients: Tensor, directions: Tensor, damping: float) -> Tensor:
    """Return Σ_i g_i (g_i · v) / (λ + ‖g_i‖²) over a batch, [d, k].

    Batches add up to what `datainf_direction` takes; an example without gradient adds nothing.

    Args:
        gradients: [n, d], one example per row.
        directions: v, one per column, [d, k].
        damping: λ, above 0.
    """
    squares = gradients.square().sum(1)
    return gradients.T @ (gradients @ directions / (damping + squares)[:, None])


def datainf_direction(directions: Tensor, correction: Tensor, count: int, damping: float) -> Tensor:
    """Return (1/n) Σ_i (g_i g_iᵀ + λI)⁻¹ v, [d, k].

    By Sherman and Morrison this is (v - (1/n) Σ_i g_i (g_i · v) / (λ + ‖g_i‖²)) / λ. Source: Kwon
    et al. 2024 (DataInf), and the authors' code, which takes each LoRA matrix for a layer too.

    It stands for ((1/n) Σ_i g_i g_iᵀ + λI)⁻¹ v with mean and inverse swapped, which is exact for
    one example and worsens with d. Where ‖g_i‖² is well above λ, as it is with the paper's λ of
    0.1/d of the mean, it is close to (v - (1/n) Σ_i ĝ_i (ĝ_i · v)) / λ with ĝ_i of unit length:
    what it changes is above all the weight 1/λ that each parameter gets, and a direction that a
    share s of the gradients point in shrinks by 1 - s only, where a true inverse shrinks it by
    about 0.1 / (s · d).

    Args:
        directions: v, [d, k].
        correction: `datainf_correction`, summed over the n examples.
        count: n.
        damping: λ. At 0 no example has a gradient for this weight, and the direction is zero.

    Raises:
        ValueError: If ``damping`` is negative.
    """
    if damping == 0:
        return torch.zeros_like(directions)
    return (directions - correction / count) / _not_negative(damping)


@dataclass(frozen=True)
class EigenFactors:
    """Curvature of a weight [o, i]: F ≈ (U_S ⊗ U_A) diag(Λ) (U_S ⊗ U_A)ᵀ, flattened row by row.

    Attributes:
        left: U_S, eigenvectors of S = E[dy dyᵀ] in the columns, [o, o].
        right: U_A, eigenvectors of A = E[x xᵀ] in the columns, [i, i].
        eigenvalues: Λ, [o, i].
    """

    left: Tensor
    right: Tensor
    eigenvalues: Tensor


def eigenvectors(matrix: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric matrix in the columns, [d, d].

    Decomposed in float64 and returned in the matrix's own dtype. Only the lower triangle is looked
    at, so it does not matter that rounding left the matrix a little asymmetric.
    """
    _, vectors = torch.linalg.eigh(matrix.double())
    return vectors.to(matrix.dtype)  # type: ignore[no-any-return]


def rotated_squares(gradients: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return Σ_i (U_Sᵀ G_i U_A)² elementwise over a batch, [o, i].

    Its mean over examples is the diagonal of E[g gᵀ] in the eigenbasis: of all diagonals the one
    nearest to it in Frobenius norm. Source: George et al. 2018 (EK-FAC).

    Args:
        gradients: G_i, [n, o, i].
        left: U_S, [o, o].
        right: U_A, [i, i].
    """
    return (left.T @ gradients @ right).square().sum(0)


def ekfac_damping(factors: EigenFactors, factor: float) -> float:
    """Return factor · mean Λ; the factor is 0.1 in Grosse et al. 2023."""
    return factor * float(factors.eigenvalues.double().mean())


def ekfac_direction(directions: Tensor, factors: EigenFactors, damping: float) -> Tensor:
    """Return U_S ((U_Sᵀ V U_A) / (Λ + damping)) U_Aᵀ for every direction, [d, k].

    Source: George et al. 2018, Grosse et al. 2023; the same as kronfluence's ``ekfac``.

    It is the exact (F + damping · I)⁻¹ v where each example has one token and its output gradient
    is independent of its input. It departs where tokens of an example are correlated (Λ makes up
    for that on the diagonal only) and where the eigenvectors come from fewer tokens than they have
    entries and so follow the sample's noise.

    Args:
        directions: V flattened row by row, one per column, [o · i, k].
        factors: Of the weight.
        damping: Added to every eigenvalue. At 0 the direction is zero if all eigenvalues are.

    Raises:
        ValueError: If ``damping`` is negative.
    """
    left, right, eigenvalues = (
        t.double() for t in (factors.left, factors.right, factors.eigenvalues)
    )
    if damping == 0 and not eigenvalues.any():
        return torch.zeros_like(directions)
    matrices = directions.double().T.reshape(-1, *eigenvalues.shape)
    rotated = left.T @ matrices @ right / (eigenvalues + _not_negative(damping))
    return (left @ rotated @ right.T).flatten(1).T.to(directions.dtype).contiguous()


def drawn_tokens(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Return a token drawn from softmax(logits) for each row, by inverting the distribution.

    Row m gets the first token at which the cumulative probability exceeds its uniform number, so
    that the draw depends on the row and the number alone, not on the batch or the device.

    Args:
        logits: [m, vocabulary].
        uniforms: In [0, 1), float64, [m].
    """
    cumulative = logits.double().softmax(1).cumsum(1)
    reached = uniforms[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, reached, right=True).squeeze(1)
    return tokens.clamp_max(logits.shape[1] - 1)  # NaN reaches the end


def _not_negative(damping: float) -> float:
    if damping < 0:
        raise ValueError(
            f"damping must not be negative, got {damping}: the curvature could not be inverted."
        )
    return damping
