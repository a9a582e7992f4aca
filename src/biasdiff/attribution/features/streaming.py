"""Scores of every stored row against probe vectors, read block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biasdiff.attribution.features.shards import from_stored, stored_blocks
from biasdiff.attribution.features.store import FeatureStore
from biasdiff.errors import DataError
from biasdiff.progress import task

# A block in float32 should stay in a processor's cache until it is multiplied.
BLOCK_BYTES = 2**22


def stream_scores(
    store: FeatureStore,
    probe_vectors: Tensor,
    *,
    cosine: bool = True,
    into: Path | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> NDArray[np.float32]:
    """Return the inner product of every row with every probe vector, or their cosines.

    ⟨f_i, v_j⟩ / ‖f_i‖ with the stored norm. Only the row is brought to unit length: give unit probe
    vectors for cosines with each, or sums or means of unit vectors for sums or means of cosines. A
    row of norm 0 scores 0. Products are made in float32.

    Memory is a block as it is stored, one in float32, the probe vectors, the norms, and the
    scores unless ``into`` is given.

    Args:
        store: An open feature store with n rows.
        probe_vectors: [k, p], projected as the rows are.
        cosine: Divide by the rows' norms.
        into: A ``.npy`` file to write scores to; it appears when they are complete.
        block_bytes: Size of a block of rows in float32.

    Returns:
        [n, p], a memory map of ``into`` if that is given.

    Raises:
        ValueError: If the probe vectors do not have the rows' length.
        DataError: If a shard ends early.
    """
    n, k = store.manifest.rows, store.manifest.k
    if probe_vectors.ndim != 2 or len(probe_vectors) != k:
        raise ValueError(f"probe vectors are {list(probe_vectors.shape)}, expected [{k}, p].")
    # [p, k] times [k, rows] is fast for few vectors too, where the transpose of it is not.
    probes = probe_vectors.detach().to("cpu", torch.float32).T.contiguous()
    blocks = _scored_blocks(store, probes, cosine, max(1, block_bytes // (4 * k)))
    if into is None:
        scores = np.empty((n, len(probes)), np.float32)
        for start, block in blocks:
            scores[start : start + len(block)] = block
        return scores
    work = into.with_name(into.name + ".part")
    with work.open("wb") as file:
        layout = {"descr": "<f4", "fortran_order": False, "shape": (n, len(probes))}
        np.lib.format.write_array_header_1_0(file, layout)
        for _, block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
    work.rename(into)
    return np.load(into, mmap_mode="r")  # type: ignore[no-any-return]


def _scored_blocks(
    store: FeatureStore, probes: Tensor, cosine: bool, rows: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    norms = torch.from_numpy(store.norms)
    # Stored rows are f / ‖f‖ or f itself; the factor makes of them what is asked for.
    if store.manifest.normalised == cosine:
        factors = torch.ones_like(norms)
    else:
        factors = 1 / norms if cosine else norms
    factors = torch.where(norms > 0, factors, 0)
    wide = torch.empty(min(rows, store.manifest.rows), store.manifest.k)
    with task("scores of features", store.manifest.rows) as progress:
        for start, stored in _stored_blocks(store, rows):
            count = len(stored)
            block = wide[:count].copy_(from_stored(stored, store.manifest.dtype))
            products = torch.mm(probes, block.T) * factors[start : start + count]
            yield start, products.T.numpy()
            progress.advance(count)


def _stored_blocks(store: FeatureStore, rows: int) -> Iterator[tuple[int, NDArray[Any]]]:
    for shard in store.manifest.shards:
        path, layout = store.folder / shard.file, store.manifest.layout(shard)
        try:
            for start, block in stored_blocks(path, layout, rows):
                yield shard.first + start, block
        except (EOFError, FileNotFoundError) as error:
            raise DataError(
                f"{path} was cut short while it was read",
                expected=f"{layout.size:,} bytes",
                remedy="make the features again: only its rows are made anew",
            ) from error
