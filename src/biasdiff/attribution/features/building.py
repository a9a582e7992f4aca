"""Train features of a model at a checkpoint, projected and stored as the gradients come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biasdiff.attribution.features.projected_rows import ProjectedRows
from biasdiff.attribution.features.shards import StorageType
from biasdiff.attribution.features.store import FeatureStore
from biasdiff.attribution.features.streaming import stream_scores
from biasdiff.attribution.features.writer import FeatureWriter
from biasdiff.attribution.gradients import batch_gradients
from biasdiff.attribution.parameters import lora_maps
from biasdiff.attribution.probe_directions import ProbeDirection
from biasdiff.attribution.scoring import Comparison, Pass, grouped_batches
from biasdiff.attribution.train_sides import TrainSide
from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.functional.projection import Projection
from biasdiff.progress import task
from biasdiff.training import processes

Taken = tuple[list[int], Tensor, Tensor]
"""Numbers of rows, their features and their norms."""


def build_store(
    folder: Path,
    made_from: Mapping[str, Any],
    model: Any,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    side: TrainSide,
    projection: Projection,
    how: Pass,
    *,
    dtype: StorageType = "float16",
) -> int:
    """Write the train directions Γ_i of every example, projected, with their exact lengths.

    Goes on with an interrupted store and mends a broken one: only rows that are not there are
    computed. Several processes share the batches, and the first one writes.

    Args:
        folder: Of the store.
        made_from: What the features depend on; see `FeatureWriter`.
        model: PEFT model at the checkpoint.
        encodings: The train set.
        names: Ids.
        side: What becomes of a gradient.
        projection: Of the directions.
        how: Token budget and loss; groups are not stored.
        dtype: To store features as.

    Returns:
        The number of rows that were made.
    """
    k = projection.dimensions
    if not processes.is_first():
        nothing: dict[int, NDArray[np.bool_]] = {}
        written = processes.gather(nothing)[0]
        return _compute(None, written, model, encodings, side, projection, how)
    with FeatureWriter(folder, made_from, names, k, dtype=dtype, normalised=True) as writer:
        written = processes.gather({0: writer.written.copy()})[0]
        made = _compute(writer, written, model, encodings, side, projection, how)
        writer.finish()
    return made


def _compute(
    writer: FeatureWriter | None,
    written: NDArray[np.bool_],
    model: Any,
    encodings: Sequence[Encoding],
    side: TrainSide,
    projection: Projection,
    how: Pass,
) -> int:
    """Compute what is missing in turns, each process a batch or some; return the rows made."""
    batches = [
        batch
        for _, batch in grouped_batches([len(e) for e in encodings], how)
        if not written[batch].all()
    ]
    turns = -(-len(batches) // processes.count())
    rows = _Rows(model, side, projection, how)
    total = 0
    with task("gradient features", sum(map(len, batches))) as progress:
        for turn in range(turns):
            own = turn * processes.count() + processes.number()
            taken = None
            if own < len(batches):
                taken = rows.add(batches[own], encodings)
            if turn == turns - 1 and taken is None:
                taken = rows.rest()
            parts = processes.gather({processes.number(): taken})
            for part in parts.values():
                if part is None:
                    continue
                members, features, norms = part
                if writer is not None:
                    writer.append(members, features, norms)
                total += len(members)
                progress.advance(len(members))
    return total


class _Rows:
    """Projects batch after batch, and gives rows when enough have come together."""

    def __init__(self, model: Any, side: TrainSide, projection: Projection, how: Pass) -> None:
        self._model, self._side, self._how = model, side, how
        self._parameters = lora_maps(model)
        self._rows = ProjectedRows(projection)
        self._members: list[int] = []
        self._squares: list[Tensor] = []

    def add(self, batch: Sequence[int], encodings: Sequence[Encoding]) -> Taken | None:
        device = next(self._model.parameters()).device
        squares = torch.zeros(len(batch), device=device)

        def keep(name: str, gradients: Tensor) -> None:
            directions = self._side(name, gradients).float()
            squares.add_(torch.linalg.vector_norm(directions, dim=1).square())
            self._rows.add(name, directions)

        inputs = make_batch([encodings[i] for i in batch], device=device)
        batch_gradients(
            self._model, inputs, keep, parameters=self._parameters, average=self._how.average
        )
        self._rows.end_batch()
        self._members += batch
        self._squares.append(squares)
        return self.rest() if self._rows.is_full else None

    def rest(self) -> Taken | None:
        """Give what has come together."""
        if not self._members:
            return None
        taken = (self._members, self._rows.take().cpu(), torch.cat(self._squares).sqrt().cpu())
        self._members, self._squares = [], []
        return taken


def project_direction(probe: ProbeDirection, projection: Projection) -> Tensor:
    """Return the probe direction in the projection's space, [dimensions, bias types]."""
    first = next(iter(probe.sums.values()))
    projected = torch.zeros(len(probe.bias_types), projection.dimensions, device=first.device)
    for name, sums in probe.sums.items():
        projection.add_to(projected, name, sums.T.contiguous())
    return projected.T.cpu()


def store_sums(
    store: FeatureStore, comparisons: Mapping[str, Comparison], projection: Projection
) -> dict[str, Tensor]:
    """Return what `score_train_set` returns, but for the projection's error, from a store.

    The store is read once for all comparisons that divide by the length of the train direction,
    which is stored exactly, and once for those that do not.

    Args:
        store: Train features, of the train side of every comparison.
        comparisons: With unprojected probe directions.
        projection: The one that the store was made with.
    """
    found: dict[str, Tensor] = {}
    for cosine in (True, False):
        vectors = {
            name: project_direction(comparison.probe, projection)
            for name, comparison in comparisons.items()
            if (comparison.normalize != "none") == cosine
        }
        if vectors:
            widths = [vector.shape[1] for vector in vectors.values()]
            scores = stream_scores(store, torch.cat(list(vectors.values()), dim=1), cosine=cosine)
            parts = torch.split(torch.from_numpy(np.asarray(scores)), widths, dim=1)
            found |= zip(vectors, parts, strict=True)
    return found
