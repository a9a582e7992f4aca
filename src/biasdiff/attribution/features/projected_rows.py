"""Projects the gradients of batch after batch, several together where that is cheaper."""

from __future__ import annotations

import torch
from torch import Tensor

from biasdiff.functional.projection import Projection

HOLD_BYTES = 2**28


class ProjectedRows:
    """Takes each parameter's gradients as the backward pass makes them and returns features.

    A sparse projection, or a dense one whose matrix is in memory, is applied at once, and nothing
    of the gradient is kept. Where a dense matrix has to be made anew for every use, gradients are
    held while they fit in ``hold_bytes``, so that each block is made once for several batches.

    Args:
        projection: Of the gradients.
        hold_bytes: Memory for gradients that wait; a single batch may exceed it.
    """

    def __init__(self, projection: Projection, *, hold_bytes: int = HOLD_BYTES) -> None:
        self._projection, self._hold_bytes = projection, hold_bytes
        self._waiting: dict[str, list[Tensor]] = {}
        self._finished: list[Tensor] = []
        self._current: Tensor | None = None
        self._held = self._batch = self._largest = 0  # bytes
        self._seen: set[str] = set()
        self._parameters: set[str] | None = None
        self.rows = 0

    def add(self, name: str, rows: Tensor) -> None:
        """Take one parameter's gradients of the current batch, [n, d].

        Raises:
            ValueError: If the parameter came already, or others with another number of rows.
        """
        rows = rows.float()
        if self._current is None:
            self._current = rows.new_zeros(len(rows), self._projection.dimensions)
        if len(rows) != len(self._current) or name in self._seen:
            raise ValueError(
                f"{name} has gradients of {len(rows)} examples"
                f"{' once more' if name in self._seen else ''}, expected {len(self._current)} "
                "once for each parameter: call end_batch between batches."
            )
        self._seen.add(name)
        size = rows.numel() * rows.element_size()
        self._batch += size
        if self._projection.repeats_work:
            self._waiting.setdefault(name, []).append(rows)
            self._held += size
        else:
            self._projection.add_to(self._current, name, rows)

    def end_batch(self) -> None:
        """Close the batch; what follows is rows of the next.

        Raises:
            ValueError: If the batch had other parameters than the one before.
        """
        if self._current is None:
            return
        if self._parameters is not None and self._seen != self._parameters:
            odd = sorted(self._seen ^ self._parameters)
            raise ValueError(f"a batch had gradients of other parameters than before: {odd[:4]}.")
        self._parameters, self._seen = self._seen, set()
        self.rows += len(self._current)
        self._finished.append(self._current)
        self._current = None
        self._largest, self._batch = max(self._largest, self._batch), 0

    @property
    def is_full(self) -> bool:
        """Whether `take` should be called: nothing waits, or one more batch may not fit."""
        return self._held + self._largest > self._hold_bytes or not self._held

    def take(self) -> Tensor:
        """Return the features of all rows since the last call, [n, k], in the order they came.

        Raises:
            ValueError: If there are none, or a batch is open.
        """
        if self._current is not None or not self._finished:
            raise ValueError("there are no rows to take: call add for a batch, then end_batch.")
        features = torch.cat(self._finished)
        for name, parts in self._waiting.items():
            self._add_waiting(features, name, parts)
        self._waiting, self._finished = {}, []
        self._held = self.rows = 0
        return features

    def _add_waiting(self, features: Tensor, name: str, parts: list[Tensor]) -> None:
        gradients = torch.cat(parts)
        parts.clear()
        # Rows that came before the projection was known to repeat work are projected already.
        missing = len(features) - len(gradients)
        self._projection.add_to(features[missing:], name, gradients)
