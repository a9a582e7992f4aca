"""Cross-entropy of a linear output layer at chosen positions, with its gradient, in one sweep."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BYTES = 2**27


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, scales: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return ℓ_t = -log softmax(W h_t + b)[y_t] and ∂(Σ_t s_t ℓ_t)/∂h_t.

    ∂ℓ/∂h = Wᵀ (softmax(W h + b) - e_y). The logits of a chunk of positions exist once and are
    turned into their own gradient in place, so that a large vocabulary never fills the memory and
    nothing is kept for a backward pass. Softmax in float32 or better.

    Args:
        hidden: [m, h], what the output layer is applied to.
        weight: [vocabulary, h].
        targets: [m], token ids.
        scales: [m], s_t.
        bias: [vocabulary], where the layer has one.

    Returns:
        Losses [m] and gradients [m, h], the latter in the dtype of ``hidden``.
    """
    rows = max(1, CHUNK_BYTES // (4 * len(weight)))
    losses = torch.empty(len(hidden), dtype=_wide(hidden), device=hidden.device)
    scales = scales.to(losses.dtype)
    gradients = torch.empty_like(hidden)
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        logits = torch.nn.functional.linear(hidden[part], weight, bias).to(losses.dtype)
        chosen = targets[part, None]
        total = logits.logsumexp(1, keepdim=True)
        losses[part] = (total - logits.gather(1, chosen)).squeeze(1)
        softmax = logits.sub_(total).exp_()
        softmax.scatter_add_(1, chosen, torch.full_like(total, -1))
        softmax.mul_(scales[part, None])
        gradients[part] = softmax.to(weight.dtype) @ weight
    return losses, gradients


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
