"""Per-example gradients of linear maps, and the cosines between them and probe directions."""

from __future__ import annotations

import torch
from torch import Tensor


def outer_product_gradients(inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """Return each example's gradient of the weight W of y_t = W x_t.

    G_i = Σ_t (∂L/∂y_it) x_itᵀ, contracted over tokens for the whole batch at once. Positions that
    carry no gradient (padding) add exactly nothing.

    Args:
        inputs: [n, t, i], what the linear map was applied to.
        output_gradients: [n, t, o], gradient of the summed loss in the map's output.

    Returns:
        [n, o, i].
    """
    return torch.bmm(output_gradients.transpose(1, 2), inputs)


def mean_cosine(products: Tensor, squared_norms: Tensor) -> Tensor:
    """Return ⟨Γ_i, u_k⟩ / ‖Γ_i‖, 0 for an example whose direction is zero.

    With u_k the mean of unit probe vectors this is the mean cosine between the train example and
    the probes of group k (BIAS DIFF Eq. 5 at one checkpoint, both sides normalised as in LESS).

    Args:
        products: [n, k], inner products with each u_k.
        squared_norms: [n], squared length of each Γ_i.
    """
    norms = squared_norms.sqrt()
    cosines = products / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]
    return torch.where(norms[:, None] > 0, cosines, torch.zeros_like(cosines))
