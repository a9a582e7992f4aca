from __future__ import annotations

import hashlib
import math
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from biasdiff.functional.projection import (
    DenseProjection,
    Projection,
    SparseProjection,
    hashed,
    make_projection,
    normal_table,
    parameter_key,
    sign_table,
)

SIZES = {"layers.0.q.lora_A": 37, "layers.0.q.lora_B": 20, "layers.1.v.lora_A": 64}
KINDS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "sjlt"},
    {"kind": "sjlt", "nonzeros": 3},
    {"kind": "rademacher"},
    {"kind": "gaussian"},
]
EVERY_KIND = pytest.mark.parametrize(
    "settings", KINDS, ids=lambda s: "-".join(map(str, s.values()))
)


def splitmix64(key: int, counter: int) -> int:
    """Return the same number in plain unsigned arithmetic."""
    word = (key + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def slow_key(seed: int, name: str, purpose: str) -> int:
    text = f"{seed}/{purpose}/{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def slow_matrix(settings: dict[str, Any], name: str, size: int, k: int, seed: int) -> Tensor:
    """Return a parameter's [d, k] matrix in float64, entry by entry as documented."""
    kind = settings["kind"]
    matrix = torch.zeros(size, k, dtype=torch.float64)
    if kind == "sjlt":
        blocks = settings.get("nonzeros", 1)
        width = k // blocks
        runs = math.ceil(size / width)
        for block in range(blocks):
            for run in range(runs):
                first = (block * runs + run) * width
                draws = [splitmix64(slow_key(seed, name, "order"), first + j) for j in range(width)]
                signed = [d - 2**64 if d >= 2**63 else d for d in draws]
                order = sorted(range(width), key=signed.__getitem__)
                length = min(width, size - run * width)
                for j in range(width):
                    bit = splitmix64(slow_key(seed, name, "sign"), first + j) & 1
                    # a whole run is gathered by output, the last, shorter one scattered by input
                    row, column = (order[j], j) if length == width else (j, order[j])
                    if row < length:
                        entry = (2 * bit - 1) / math.sqrt(blocks)
                        matrix[run * width + row, block * width + column] = entry
        return matrix
    per_word, bits = (64, 1) if kind == "rademacher" else (4, 16)
    normal = statistics.NormalDist()
    levels = [normal.inv_cdf((j + 0.5) / 2**16) for j in range(2**16)]
    spread = math.sqrt(math.fsum(x * x for x in levels) / 2**16)
    words = math.ceil(k / per_word)
    for i in range(size):
        for j in range(k):
            word = splitmix64(slow_key(seed, name, kind), i * words + j // per_word)
            draw = word >> (bits * (j % per_word)) & (2**bits - 1)
            entry = 2 * draw - 1 if kind == "rademacher" else levels[draw] / spread
            matrix[i, j] = entry / math.sqrt(k)
    return matrix


def projected(projection: Projection, blocks: dict[str, Tensor]) -> Tensor:
    first = next(iter(blocks.values()))
    out = first.new_zeros(len(first), projection.dimensions)
    for name, rows in blocks.items():
        projection.add_to(out, name, rows)
    return out


def random_blocks(
    n: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(n, size, generator=generator, dtype=torch.float64).to(dtype)
        for name, size in SIZES.items()
    }


def made(settings: dict[str, Any], *, k: int = 30, seed: int = 0, **more: Any) -> Projection:
    return make_projection(sizes=SIZES, k=k, seed=seed, **settings, **more)


def test_hashes_are_splitmix64() -> None:
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip
    found = [word % 2**64 for word in hashed(1234567, torch.arange(5)).tolist()]
    assert found == published
    key = parameter_key(3, "a name", "sign")
    counters = [0, 1, 2**31, 2**40 + 7]
    assert [word % 2**64 for word in hashed(key, torch.tensor(counters)).tolist()] == [
        splitmix64(slow_key(3, "a name", "sign"), counter) for counter in counters
    ]


@pytest.mark.parametrize("settings", KINDS[1:], ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("k", [30, 66])
def test_projection_is_a_product_with_the_documented_matrix(
    settings: dict[str, Any], k: int
) -> None:
    blocks = random_blocks(5, dtype=torch.float64)
    expected = sum(
        (rows @ slow_matrix(settings, name, rows.shape[1], k, 7) for name, rows in blocks.items()),
        torch.zeros(5, k, dtype=torch.float64),
    )
    found = projected(made(settings, k=k, seed=7), blocks)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    single = {name: rows.float() for name, rows in blocks.items()}
    assert projected(made(settings, k=k, seed=7), single).dtype == torch.float32
    torch.testing.assert_close(
        projected(made(settings, k=k, seed=7), single).double(), expected, rtol=0, atol=1e-5
    )


def test_no_projection_is_the_whole_gradient() -> None:
    blocks = random_blocks(3)
    projection = made({"kind": "none"})
    assert projection.dimensions == sum(SIZES.values())
    backwards = dict(reversed(blocks.items()))
    assert torch.equal(projected(projection, backwards), torch.cat(list(blocks.values()), dim=1))


@pytest.mark.parametrize(("k", "nonzeros"), [(24, 1), (24, 4), (128, 2)])
def test_each_coordinate_meets_one_output_of_each_block(k: int, nonzeros: int) -> None:
    size = 61
    matrix = torch.zeros(size, k)
    SparseProjection(k=k, seed=1, nonzeros=nonzeros).add_to(matrix, "w", torch.eye(size))
    width = k // nonzeros
    entries = matrix[matrix != 0].abs()
    torch.testing.assert_close(entries, torch.full_like(entries, 1 / math.sqrt(nonzeros)))
    for block in matrix.split(width, dim=1):
        assert ((block != 0).sum(1) == 1).all()
        assert (block != 0).sum(0).max() <= math.ceil(size / width)


@EVERY_KIND
def test_inner_products_are_kept_in_expectation(settings: dict[str, Any]) -> None:
    k, draws = 60, 400
    x, y = random_blocks(1, seed=1, dtype=torch.float64), random_blocks(1, seed=2)
    # Of one sign for the most part, or collisions without signs would cancel as well.
    x = {name: rows + 1 for name, rows in x.items()}
    y = {name: 0.5 * x[name] + rows.double() for name, rows in y.items()}
    exact = float(sum(((x[name] * y[name]).sum() for name in SIZES), torch.tensor(0.0)))
    lengths = [
        float(sum((v[name].square().sum() for name in SIZES), torch.tensor(0.0))) for v in (x, y)
    ]
    found = []
    for seed in range(draws):
        projection = made(settings, k=k, seed=seed)
        found.append(float(projected(projection, x)[0] @ projected(projection, y)[0]))
    if settings["kind"] == "none":
        assert found == pytest.approx([exact] * draws)
        return
    # At most (‖x‖²‖y‖² + ⟨x, y⟩²) / k, that of normal entries, give or take 6 errors of a variance.
    bound = (lengths[0] * lengths[1] + exact**2) / k
    assert abs(statistics.mean(found) - exact) < 4.5 * math.sqrt(bound / draws)
    assert 0.5 * bound < statistics.variance(found) < bound * (1 + 6 * math.sqrt(2 / draws))


@EVERY_KIND
def test_seed_and_name_decide_the_matrix(settings: dict[str, Any]) -> None:
    blocks = random_blocks(4)
    first = projected(made(settings), blocks)
    assert torch.equal(projected(made(settings), blocks), first)
    if settings["kind"] == "none":
        return
    assert not torch.allclose(projected(made(settings, seed=1), blocks), first)
    rows = blocks["layers.0.q.lora_A"]
    alone = projected(made(settings), {"a": rows}) * projected(made(settings), {"b": rows})
    own = projected(made(settings), {"a": rows}).square().sum()
    assert alone.sum().abs() < 0.7 * own, "matrices of two names go the same way"


@EVERY_KIND
def test_order_of_parameters_does_not_matter(settings: dict[str, Any]) -> None:
    blocks = random_blocks(4)
    backwards = dict(reversed(blocks.items()))
    torch.testing.assert_close(
        projected(made(settings), backwards), projected(made(settings), blocks)
    )


@EVERY_KIND
def test_batching_does_not_matter(settings: dict[str, Any]) -> None:
    blocks = random_blocks(11)
    whole = projected(made(settings), blocks)
    projection = made(settings)
    parts = [
        projected(projection, {name: rows[start:stop] for name, rows in blocks.items()})
        for start, stop in ((0, 1), (1, 7), (7, 11))
    ]
    if settings["kind"] in ("none", "sjlt"):
        assert torch.equal(torch.cat(parts), whole)
    else:  # the matrix is the same, sums of products are rounded in another order
        torch.testing.assert_close(torch.cat(parts), whole)


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_half_precision(settings: dict[str, Any], dtype: torch.dtype) -> None:
    blocks = {name: rows.to(dtype) for name, rows in random_blocks(3).items()}
    out = torch.zeros(3, made(settings).dimensions)
    for name, rows in blocks.items():
        made(settings).add_to(out, name, rows)
    single = {name: rows.float() for name, rows in blocks.items()}
    torch.testing.assert_close(out, projected(made(settings), single))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_blocks_are_kept_within_the_budget_and_made_anew_beyond(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    k, size = 64, 100
    makes: list[int] = []
    make = DenseProjection._make_block

    def counted(self: DenseProjection, name: str, start: int, count: int, device: Any) -> Tensor:
        makes.append(count)
        return make(self, name, start, count, device)

    monkeypatch.setattr(DenseProjection, "_make_block", counted)
    rows = torch.randn(4, size)
    results = []
    for keep_bytes, expected in ((2**20, 10), (4 * 10 * k * 4, 10 + 6 + 6), (0, 30)):
        makes.clear()
        projection = DenseProjection(
            kind, k=k, seed=0, keep_bytes=keep_bytes, block_bytes=10 * k * 4
        )
        assert not projection.repeats_work
        results += [projected(projection, {"w": rows}) for _ in range(3)]
        assert len(makes) == expected
        assert max(makes) == 10, "a block is larger than was asked for"
        assert projection.repeats_work is (keep_bytes < 2**20)
        held = sum(block.untyped_storage().nbytes() for block in projection._kept.values())
        assert held <= keep_bytes
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_matrix_does_not_depend_on_its_blocks(kind: Any) -> None:
    matrices = []
    for block_bytes in (1, 7 * 66 * 4, 2**22):
        matrix = torch.zeros(50, 66)
        DenseProjection(kind, k=66, seed=4, block_bytes=block_bytes).add_to(
            matrix, "w", torch.eye(50)
        )
        matrices.append(matrix)
    assert all(torch.equal(matrix, matrices[0]) for matrix in matrices)


def test_entries_are_distributed_as_said() -> None:
    signs, normal = sign_table(), normal_table().double()
    assert signs.abs().eq(1).all()
    assert [int(x) for x in signs[0b10000010]] == [-1, 1, -1, -1, -1, -1, -1, 1]
    assert normal.mean() == 0
    assert float(normal.var(correction=0)) == pytest.approx(1, abs=1e-6)
    assert float(normal.pow(4).mean()) == pytest.approx(3, abs=0.005)
    words = hashed(parameter_key(0, "w", "sign"), torch.arange(20_000))
    ones = torch.stack([words.bitwise_right_shift(b).bitwise_and(1) for b in range(64)]).double()
    assert (ones.mean(1) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(20_000)
    assert torch.corrcoef(ones).fill_diagonal_(0).abs().max() < 5.5 / math.sqrt(20_000)


def test_matrices_stay_what_they_were() -> None:
    """Stores of earlier versions are read with probes projected by this one."""
    digests = {}
    for settings in KINDS[1:4]:
        out = projected(made(settings, seed=5), {"w": torch.eye(40)})
        digests["-".join(map(str, settings.values()))] = hashlib.sha256(
            out.numpy().tobytes()
        ).hexdigest()[:16]
    assert digests == {
        "sjlt": "acfc9f5ac6ed6a97",
        "sjlt-3": "f53a2891702f6ec2",
        "rademacher": "dae794a26e9dab95",
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@EVERY_KIND
def test_the_gpu_uses_the_same_matrices(settings: dict[str, Any]) -> None:
    eye = {name: torch.zeros(sum(SIZES.values()), size) for name, size in SIZES.items()}
    row = 0
    for name, size in SIZES.items():
        eye[name][row : row + size] = torch.eye(size)
        row += size
    there = {name: rows.cuda() for name, rows in eye.items()}
    found = projected(made(settings), there).cpu()
    assert torch.equal(found, projected(made(settings), eye))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "fast"}, "no projection 'fast', expected one of none, sjlt, rademacher, gaus"),
        ({"kind": "sjlt", "nonzeros": 4}, "nonzeros is 4, expected a divisor of the 30 dimensions"),
        ({"kind": "sjlt", "nonzeros": 0}, "nonzeros is 0, expected a divisor"),
    ],
)
def test_unknown_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(settings)


def test_no_dimensions() -> None:
    with pytest.raises(ValueError, match="k is 0, expected at least 1 dimension"):
        made({"kind": "sjlt"}, k=0)


@EVERY_KIND
def test_wrong_shapes(settings: dict[str, Any]) -> None:
    projection = made(settings)
    out = torch.zeros(2, projection.dimensions)
    with pytest.raises(ValueError, match=r"w: gradients \[3, 4\] cannot be added to \[2, "):
        projection.add_to(out, "w", torch.zeros(3, 4))


def test_a_parameter_of_another_size() -> None:
    projection = made({"kind": "none"})
    with pytest.raises(ValueError, match="lora_B has gradients of 21 numbers, expected 20"):
        projection.add_to(torch.zeros(1, 121), "layers.0.q.lora_B", torch.zeros(1, 21))
