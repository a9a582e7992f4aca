"""What each kind of row must be, from our per-example gradients, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from biasdiff.functional.adam import less_direction, preconditioned_gradient

EXACT = ("gradients", "cosines", "less", "adam", "adam-v", "dots")


def expected(kind: str, gradients: Tensor, vectors: dict[str, Tensor]) -> Tensor:
    """Return the rows.

    ``gradients``: themselves. ``cosines``: ⟨g/‖g‖, u⟩ with the probe vector u. ``less``: the same
    of LESS's Γ; ``adam``: of g / (√v + ε); ``adam-v``: likewise, v advanced by g first, as ours is.
    ``dots``: ⟨g, gradient of the probe sentence⟩. ``features``, ``dense-features`` and
    ``less-features`` are random projections of g, g and Γ: these come back as they are, and only
    the angles between them can be compared.

    Args:
        kind: Of the rows.
        gradients: [n, d].
        vectors: ``probe``, ``probe_gradient``, ``exp_avg`` and ``exp_avg_sq``, each [d].
    """
    g, v = gradients.double(), {name: vector.double() for name, vector in vectors.items()}
    if kind in {"gradients", "features", "dense-features"}:
        return g
    if kind == "dots":
        return g @ v["probe_gradient"]
    if kind.startswith("less"):
        g = less_direction(g, v["exp_avg"], v["exp_avg_sq"])
    if kind == "less-features":
        return g
    if kind == "adam-v":
        g = preconditioned_gradient(g, v["exp_avg_sq"])
    if kind == "adam":
        g = g / (v["exp_avg_sq"].sqrt() + 1e-8)
    return g @ v["probe"] / g.norm(dim=1)


def departure(kind: str, found: Tensor, wanted: Tensor) -> str:
    """Return in words how far rows are from what is expected.

    Exact ones: the largest ‖Δ_i‖/‖g_i‖ of gradients, the largest |Δ_i| of scores over the largest
    score. Projected ones: the correlation of the angles between examples before and after.
    """
    found = found.double()
    if kind == "gradients":
        return f"{float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max()):.1e}"
    if kind in EXACT:
        return f"{float((found - wanted).abs().max() / wanted.abs().max()):.1e}"
    upper = torch.triu_indices(len(found), len(found), offset=1)
    angles = [
        (unit @ unit.T)[upper[0], upper[1]]
        for unit in (torch.nn.functional.normalize(rows, dim=1) for rows in (found, wanted))
    ]
    return f"r = {float(torch.corrcoef(torch.stack(angles))[0, 1]):.3f}, {found.shape[1]} dim."
