"""Scoring from a feature store against reading its files and against the machine's matrix product.

A synthetic store is written to a temporary folder and deleted afterwards. Each round reads all
shards and scores all rows against 1, 10 and 891 probe vectors, alternating, each time after the
system was asked to forget the files; medians over rounds are reported. The system below a virtual
machine may still remember them, so that "cold" is what this machine can arrange.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from biasdiff.attribution.features.store import FeatureStore, open_store
from biasdiff.attribution.features.streaming import stream_scores
from biasdiff.attribution.features.writer import FeatureWriter

T = TypeVar("T")
BATCH = 256
MADE_FROM = dict.fromkeys(
    ("model", "adapter", "dataset", "train_side", "projection", "seed"), "synthetic"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=8192)
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--probes", type=int, nargs="+", default=[1, 10, 891])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(), help="disk to measure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    width = 4 if options.dtype == "float32" else 2
    needed = options.rows * (options.dimensions * width + 4 * (1 + max(options.probes)))
    free = shutil.disk_usage(options.folder).free
    if free < 1.2 * needed:
        sys.exit(f"{options.folder} has {free / 1e9:.1f} GB free, {1.2 * needed / 1e9:.1f} needed")
    with tempfile.TemporaryDirectory(prefix="feature-store-", dir=options.folder) as folder:
        _measure(Path(folder), options)


def _measure(folder: Path, options: argparse.Namespace) -> None:
    seconds, store = _timed(lambda: _written(folder / "store", options))
    shards = [store.folder / shard.file for shard in store.manifest.shards]
    size = sum(shard.stat().st_size for shard in shards) / 1e9
    print(
        f"{options.rows} rows x {options.dimensions} {options.dtype}, {size:.3f} GB in "
        f"{len(shards)} shards, {options.threads} threads, median of {options.rounds} rounds"
    )
    print(f"written in batches of {BATCH}, drawing included: {size / seconds:.2f} GB/s")
    checked, _ = _timed(lambda: open_store(store.folder))
    print(f"opened with all checksums: {size / checked:.2f} GB/s")

    generator = torch.Generator().manual_seed(1)
    probes = {p: torch.randn(options.dimensions, p, generator=generator) for p in options.probes}
    reads: list[float] = []
    passes: dict[int, list[float]] = {p: [] for p in options.probes}
    ratios: dict[int, list[float]] = {p: [] for p in options.probes}
    peaks: list[float] = []
    for _ in range(options.rounds):
        for p, vectors in probes.items():
            read = _cold(shards, lambda: _read(shards))
            scored = _cold(shards, partial(_scored, store, vectors, folder))
            reads.append(read)
            passes[p].append(scored)
            ratios[p].append(scored / read)
            peaks.append(_peak())
    peak = max(peaks)
    print(f"cold read {size / statistics.median(reads):.2f} GB/s ", end="")
    print(f"({size / max(reads):.2f} to {size / min(reads):.2f})")
    print(f"matrix product {peak:.1f} GFLOP/s at best ({min(peaks):.1f} at worst)")
    for p, found in passes.items():
        middle = statistics.median(found)
        rate = 2 * options.rows * options.dimensions * p / middle / 1e9
        low, high = min(ratios[p]), max(ratios[p])
        print(
            f"{p:5d} probe vectors: {middle:8.3f} s, {size / middle:6.2f} GB/s, "
            f"{statistics.median(ratios[p]):6.2f} times the cold read ({low:.2f} to {high:.2f}), "
            f"{rate:6.1f} GFLOP/s, {rate / peak:.0%} of the matrix product"
        )
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory of the process {kilobytes / 1e6:.2f} GB (of the store: {size:.2f} GB)")


def _written(folder: Path, options: argparse.Namespace) -> FeatureStore:
    generator = torch.Generator().manual_seed(0)
    ids = [str(row) for row in range(options.rows)]
    with FeatureWriter(folder, MADE_FROM, ids, options.dimensions, dtype=options.dtype) as writer:
        for start in range(0, options.rows, BATCH):
            rows = range(start, min(start + BATCH, options.rows))
            writer.append(rows, torch.randn(len(rows), options.dimensions, generator=generator))
        return open_store(writer.finish(), checksums=False)


def _scored(store: FeatureStore, vectors: torch.Tensor, folder: Path) -> None:
    """Score to a file, as one does with many probes and many rows."""
    stream_scores(store, vectors, into=folder / "scores.npy")


def _read(shards: list[Path]) -> None:
    space = bytearray(2**22)
    for shard in shards:
        with shard.open("rb", buffering=0) as file:
            while file.readinto(space):
                pass


def _cold(shards: list[Path], function: Callable[[], object]) -> float:
    for shard in shards:
        with shard.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return _timed(function)[0]


def _peak() -> float:
    """Return the best rate of a large float32 matrix product, in GFLOP/s."""
    square = torch.randn(2048, 2048)
    best = min(_timed(lambda: square @ square)[0] for _ in range(3))
    return 2 * 2048**3 / best / 1e9


def _timed(function: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
