"""Losses, gradients and scores must be numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from biasdiff.errors import NonFiniteError, listed


def require_finite(values: Sequence[Tensor], names: Sequence[str]) -> None:
    """Refuse losses or gradients that are NaN or infinite.

    Args:
        values: [n] or [n, k] each, one row for an example.
        names: Of the examples, [n].

    Raises:
        NonFiniteError: The examples are named.
    """
    rows = [torch.isfinite(value).reshape(len(names), -1).all(1).cpu() for value in values]
    good = torch.stack(rows).all(0).tolist() if rows else []
    broken = [name for name, fine in zip(names, good, strict=bool(rows)) if not fine]
    if broken:
        raise NonFiniteError(
            f"loss or gradient is not finite for {listed(broken)}",
            expected="finite losses and gradients",
            remedy="check these examples and the adapter, or use float32",
        )
