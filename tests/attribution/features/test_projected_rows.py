from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from biasdiff.attribution.features.projected_rows import ProjectedRows
from biasdiff.attribution.gradients import backward_example_losses, per_example_gradients
from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding
from biasdiff.functional.projection import DenseProjection, make_projection
from biasdiff.models.lora import lora_parameters
from tiny_models import ARCHITECTURES, slow_gradients

BATCHES = ([3, 1, 4], [0], [9, 2], [6, 5, 8, 7])
KINDS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "sjlt"},
    {"kind": "sjlt", "nonzeros": 4},
    {"kind": "rademacher"},
    {"kind": "rademacher", "keep_bytes": 0},
    {"kind": "gaussian", "keep_bytes": 50_000},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("settings", KINDS, ids=lambda s: "-".join(map(str, s.values())))
def test_features_are_projections_of_slow_gradients(
    adapted: Callable[..., tuple[Any, Any]],
    encodings: list[Encoding],
    architecture: str,
    settings: dict[str, Any],
) -> None:
    model, _ = adapted(architecture)
    sizes = {name: p.numel() for name, p in lora_parameters(model)}
    projection = make_projection(sizes=sizes, k=32, seed=3, **settings)
    rows = ProjectedRows(projection, hold_bytes=5 * 4 * sum(sizes.values()))
    features = torch.zeros(len(encodings), projection.dimensions)
    waiting: list[int] = []
    takes = 0
    for members in BATCHES:
        with per_example_gradients(model, rows.add):
            backward_example_losses(model, make_batch([encodings[i] for i in members]))
        rows.end_batch()
        waiting += members
        if rows.is_full:
            features[waiting] = rows.take()
            waiting, takes = [], takes + 1
    if waiting:
        features[waiting] = rows.take()
        takes += 1
    assert takes < len(BATCHES) if "keep_bytes" in settings else takes == len(BATCHES)

    # The matrix of each parameter, by projecting the identity, meets gradients taken one by one.
    slow = [slow_gradients(model, encoding) for encoding in encodings]
    expected = torch.zeros(len(encodings), projection.dimensions, dtype=torch.float64)
    for name, size in sizes.items():
        matrix = torch.zeros(size, projection.dimensions, dtype=torch.float64)
        projection.add_to(matrix, name, torch.eye(size, dtype=torch.float64))
        expected += torch.stack([g[name].double().flatten() for g in slow]) @ matrix
    departure = (features.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert departure.max() < 1e-5


def test_blocks_are_made_once_for_all_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    makes: list[str] = []
    make = DenseProjection._make_block

    def counted(self: DenseProjection, name: str, *place: Any) -> torch.Tensor:
        makes.append(name)
        return make(self, name, *place)

    monkeypatch.setattr(DenseProjection, "_make_block", counted)
    rows = ProjectedRows(make_projection("gaussian", {}, k=16, keep_bytes=0), hold_bytes=8 * 400)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 100, generator=generator) for _ in range(5)]
    taken = []
    for batch in batches:
        rows.add("a", batch[:, :60])
        rows.add("b", batch[:, 60:])
        rows.end_batch()
        if rows.is_full:
            taken.append(rows.take())
    assert rows.rows == 2
    taken.append(rows.take())
    assert [len(part) for part in taken] == [8, 2]
    # The very first block shows that blocks do not fit: from then on batches wait.
    assert makes == ["a", "b", "a", "a", "b"]
    again = ProjectedRows(make_projection("gaussian", {}, k=16))
    for batch in batches:
        again.add("b", batch[:, 60:])
        again.add("a", batch[:, :60])
        again.end_batch()
    torch.testing.assert_close(torch.cat(taken), again.take())


def test_nothing_waits_where_projecting_is_cheap() -> None:
    rows = ProjectedRows(make_projection("sjlt", {}, k=16))
    rows.add("a", torch.ones(2, 100))
    rows.end_batch()
    assert rows.rows == 2
    assert rows.is_full
    assert not rows._waiting
    assert rows.take().shape == (2, 16)


def test_batches_must_agree() -> None:
    rows = ProjectedRows(make_projection("sjlt", {}, k=16))
    rows.add("a", torch.ones(2, 100))
    with pytest.raises(ValueError, match="b has gradients of 3 examples, expected 2 once for each"):
        rows.add("b", torch.ones(3, 100))
    with pytest.raises(ValueError, match="a has gradients of 2 examples once more, expected 2"):
        rows.add("a", torch.ones(2, 100))
    with pytest.raises(ValueError, match="no rows to take: call add for a batch, then end_batch"):
        rows.take()
    rows.add("b", torch.ones(2, 50))
    rows.end_batch()
    rows.add("a", torch.ones(1, 100))
    with pytest.raises(ValueError, match=r"gradients of other parameters than before: \['b'\]"):
        rows.end_batch()
