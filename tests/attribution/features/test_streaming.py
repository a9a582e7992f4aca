from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from biasdiff.attribution.features import streaming
from biasdiff.attribution.features.shards import stored_blocks
from biasdiff.attribution.features.store import open_store
from biasdiff.attribution.features.streaming import stream_scores
from biasdiff.attribution.features.writer import FeatureWriter
from biasdiff.errors import DataError

ROWS, K = 23, 20
Write = Callable[..., Path]


def probe_vectors(p: int) -> Tensor:
    return torch.randn(K, p, generator=torch.Generator().manual_seed(p))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("block_bytes", [1, 4 * K * 5, 2**22])
@pytest.mark.parametrize("p", [1, 9, 40])
def test_scores_are_products_of_what_is_stored(
    write_store: Write,
    numbers: Tensor,
    dtype: str,
    normalised: bool,
    cosine: bool,
    block_bytes: int,
    p: int,
) -> None:
    if dtype == "float16" and not normalised:
        numbers *= 1e3
    store = open_store(write_store(dtype=dtype, normalised=normalised))
    probes = probe_vectors(p)
    found = stream_scores(store, probes, cosine=cosine, block_bytes=block_bytes)
    assert found.shape == (ROWS, p)
    assert found.dtype == np.float32
    norms = numbers.double().norm(dim=1)
    stored = store.features(0, ROWS).double()
    rows = stored * norms[:, None] if normalised else stored
    if cosine:
        rows = rows / torch.where(norms > 0, norms, 1)[:, None]
    expected = rows @ probes.double()
    scale = rows.norm(dim=1)[:, None] * probes.double().norm(dim=0) + 1e-30
    assert ((torch.from_numpy(found) - expected).abs() / scale).max() < 1e-6
    # Against the features themselves, only rounding to the storage type is left.
    truth = numbers.double()
    if cosine:
        truth = truth / torch.where(norms > 0, norms, 1)[:, None]
    loss = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
    assert ((torch.from_numpy(found) - truth @ probes.double()).abs() / scale).max() < loss
    assert (found[5] == 0).all(), "a zero row"


def test_mean_of_unit_probes_gives_the_mean_cosine(write_store: Write, numbers: Tensor) -> None:
    store = open_store(write_store(dtype="float32"))
    unit = torch.nn.functional.normalize(probe_vectors(50), dim=0)
    each = stream_scores(store, unit)
    mean = stream_scores(store, unit.mean(1, keepdim=True))
    np.testing.assert_allclose(mean[:, 0], each.mean(1), atol=1e-6)
    expected = torch.nn.functional.cosine_similarity(
        numbers[:, :, None].double(), unit[None].double(), dim=1
    )
    np.testing.assert_allclose(each, expected.numpy(), atol=1e-6)


def test_given_norms_are_what_cosines_divide_by(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor
) -> None:
    norms = torch.linspace(1, 5, ROWS)
    norms[3] = 0
    for normalised in (True, False):
        folder = tmp_path / str(normalised)
        settings: dict[str, Any] = {"dtype": "float32", "normalised": normalised}
        with FeatureWriter(folder, made_from, ids, K, **settings) as writer:
            writer.append(range(ROWS), numbers, norms)
            store = open_store(writer.finish())
        expected = numbers @ probe_vectors(2) / torch.where(norms > 0, norms, 1)[:, None]
        expected[3] = 0
        found = torch.from_numpy(stream_scores(store, probe_vectors(2)))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [1, 40])
def test_scores_go_to_a_file(write_store: Write, tmp_path: Path, p: int) -> None:
    store = open_store(write_store())
    expected = stream_scores(store, probe_vectors(p))
    found = stream_scores(store, probe_vectors(p), into=tmp_path / "scores.npy", block_bytes=400)
    assert isinstance(found, np.memmap)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert np.array_equal(np.load(tmp_path / "scores.npy"), found)
    assert [path.name for path in tmp_path.glob("scores*")] == ["scores.npy"]


def test_an_interrupted_pass_leaves_no_scores(
    write_store: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(write_store())
    (store.folder / "features-00002.safetensors").write_bytes(b"short")
    with pytest.raises(
        DataError, match=r"features-00002.safetensors was cut short while it was re"
    ):
        stream_scores(store, probe_vectors(3), into=tmp_path / "scores.npy")
    assert not (tmp_path / "scores.npy").exists()
    (store.folder / "features-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"was cut short while it was read; expected [\d,]+ bytes"):
        stream_scores(store, probe_vectors(3))


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, made_from: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    k, block_rows, p = 256, 10, 3
    largest: list[int] = []

    def spied(*arguments: Any, **keywords: Any) -> Any:
        for start, block in stored_blocks(*arguments, **keywords):
            largest.append(len(block))
            yield start, block

    monkeypatch.setattr(streaming, "stored_blocks", spied)
    peaks = {}
    for n in (500, 4000):
        ids = [str(row) for row in range(n)]
        with FeatureWriter(
            tmp_path / str(n), made_from, ids, k, dtype="float32", shard_bytes=2**18
        ) as writer:
            writer.append(range(n), torch.randn(n, k))
            store = open_store(writer.finish())
        assert len(store.norms) == n
        probes = torch.randn(k, p)
        tracemalloc.start()
        stream_scores(store, probes, into=tmp_path / f"{n}.npy", block_bytes=4 * k * block_rows)
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert max(largest) == block_rows
    # NumPy's buffers are traced, and the tensors beside them are one block of as many rows.
    assert peaks[4000] < peaks[500] + 20_000
    assert peaks[4000] < 4000 * k * 4 / 10


def test_probe_vectors_of_another_length(write_store: Write) -> None:
    store = open_store(write_store())
    with pytest.raises(ValueError, match=r"probe vectors are \[19, 2\], expected \[20, p\]"):
        stream_scores(store, torch.zeros(19, 2))
    with pytest.raises(ValueError, match=r"probe vectors are \[20\], expected \[20, p\]"):
        stream_scores(store, torch.zeros(20))
