"""The direction that Adam would take on one example's gradient alone."""

from __future__ import annotations

import torch
from torch import Tensor


def less_direction(
    gradients: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """Return Γ as LESS implements it, with eps inside the root and no bias correction.

    Γ = (β1 m + (1 - β1) g) / sqrt(β2 v + (1 - β2) g² + eps). Source: Xia et al. 2024 (LESS), used
    by BIAS DIFF Eq. 5 and 6. `adam_direction` is what an optimizer really does.

    Args:
        gradients: [n, d], one example per row.
        exp_avg: [d], first moment m stored with the checkpoint.
        exp_avg_sq: [d], second moment v stored with the checkpoint.
        betas: Decay rates (β1, β2).
        eps: Added inside the root.
    """
    beta1, beta2 = betas
    first = torch.add(beta1 * exp_avg, gradients, alpha=1 - beta1)
    second = torch.addcmul(beta2 * exp_avg_sq + eps, gradients, gradients, value=1 - beta2)
    return first.mul_(second.rsqrt_())


def preconditioned_gradient(
    gradients: Tensor, exp_avg_sq: Tensor, *, beta2: float = 0.999, eps: float = 1e-8
) -> Tensor:
    """Return g / (sqrt(β2 v + (1 - β2) g²) + eps): Adam's scale without its first moment.

    The first moment is common to all examples and can drown each one's own gradient.

    Args:
        gradients: [n, d], one example per row.
        exp_avg_sq: [d], second moment v stored with the checkpoint.
        beta2: Its decay rate.
        eps: Added outside the root.
    """
    second = torch.addcmul(beta2 * exp_avg_sq, gradients, gradients, value=1 - beta2)
    return gradients / second.sqrt_().add_(eps)


def adam_direction(
    gradients: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Tensor:
    """Return the update direction Γ that Adam would take on each gradient alone.

    Γ = m̂ / (sqrt(v̂) + eps): both moments advanced once, then bias-corrected, as
    ``torch.optim.Adam`` does. LESS puts eps inside the root and skips the correction; that form is
    `less_direction`.

    Args:
        gradients: [n, d], one example per row.
        exp_avg: [d], first moment stored with the checkpoint.
        exp_avg_sq: [d], second moment stored with the checkpoint.
        step: Number of the step being taken, the checkpoint's count plus one.
        betas: Decay rates of the two moments.
        eps: Added outside the root.

    Raises:
        ValueError: If ``step`` is below 1.
    """
    if step < 1:
        raise ValueError(
            f"step must be at least 1, got {step}: pass the checkpoint's count plus one."
        )
    beta1, beta2 = betas
    first = torch.add(beta1 * exp_avg, gradients, alpha=1 - beta1)
    second = torch.addcmul(beta2 * exp_avg_sq, gradients, gradients, value=1 - beta2)
    root = second.div_(1 - beta2**step).sqrt_().add_(eps)
    return first.div_(1 - beta1**step).div_(root)
