"""Rounds features to what is stored, and refuses those that a storage type cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from biasdiff.attribution.features.shards import StorageType, from_stored, to_stored
from biasdiff.errors import DataError, NonFiniteError, listed

LOST_LENGTH = 0.01


def stored_rows(
    features: Tensor,
    norms: Tensor | None,
    names: Sequence[str],
    *,
    dtype: StorageType,
    normalised: bool,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return rows and norms, float32, as they are stored.

    Args:
        features: [n, k].
        norms: [n]; those of the features if None.
        names: Of the rows, for error messages.
        dtype: To store features as.
        normalised: Whether rows are divided by their norms; a row of norm 0 stays as it is.

    Raises:
        NonFiniteError: If a feature or norm is not finite, or too large for the type.
        DataError: If a row loses more than 1% of its length, as small numbers do in float16.
    """
    values = features.detach().float()
    lengths = values.norm(dim=1) if norms is None else norms.detach().float()
    if normalised:
        values = values / torch.where(lengths > 0, lengths, 1)[:, None]
    stored = to_stored(values, dtype)
    before, lengths = values.norm(dim=1).cpu(), lengths.cpu()
    after = from_stored(stored, dtype).float().norm(dim=1)
    broken = ~(torch.isfinite(after) & torch.isfinite(lengths))
    if broken.any():
        raise NonFiniteError(
            f"features of {_listed(names, broken)} are not finite in {dtype}",
            expected="finite features and norms",
            remedy="check the gradients of these examples, or store them normalised or as bfloat16",
        )
    lost = (after - before).abs() > LOST_LENGTH * before
    if lost.any():
        raise DataError(
            f"features of {_listed(names, lost)} are too small for {dtype}",
            expected=f"rows that keep their length within {LOST_LENGTH:.0%}",
            remedy="store them normalised, or as bfloat16 or float32",
        )
    return stored, lengths.numpy()


def _listed(names: Sequence[str], chosen: Tensor) -> str:
    named = [name for name, bad in zip(names, chosen.tolist(), strict=True) if bad]
    return listed(named)
