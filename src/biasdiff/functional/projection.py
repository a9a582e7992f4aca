"""Random projections of gradients to k dimensions, one parameter's block at a time.

Every projection is a sum Σ_m x_m P_m over parameters m, so that a whole gradient never exists. The
entries of P_m are a hash of seed, parameter name and position: parameters are independent, their
order does not matter, and CPU and GPU use the same matrices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Literal, Protocol

import torch
from torch import Tensor

Kind = Literal["none", "sjlt", "rademacher", "gaussian"]

# Fresh blocks that stay in the cache are read back while they are there; a GPU wants large ones.
BLOCK_BYTES = {"cpu": 2**22, "cuda": 2**27}
KEEP_BYTES = 2**30


class Projection(Protocol):
    """Linear map from gradients to ``dimensions`` numbers, applied parameter by parameter.

    Attributes:
        dimensions: k.
    """

    dimensions: int

    @property
    def repeats_work(self) -> bool:
        """Whether a call costs much more than its rows do, so that rows should come together."""

    def add_to(self, out: Tensor, name: str, rows: Tensor) -> None:
        """Add the rows' share of one parameter, x_m P_m.

        Args:
            out: [n, k], float32 or float64, changed in place.
            name: Of the parameter.
            rows: [n, d], its gradients, on the same device as ``out``.

        Raises:
            ValueError: If a shape is not as said.
        """


class NoProjection:
    """Puts the parameters' gradients side by side, in the order of ``sizes``: P = I."""

    repeats_work = False

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.dimensions = sum(sizes.values())
        self._sizes = dict(sizes)
        ends = list(accumulate(sizes.values()))
        self._first = dict(zip(sizes, [0, *ends], strict=False))

    def add_to(self, out: Tensor, name: str, rows: Tensor) -> None:
        """Add the rows at the parameter's place, see `Projection.add_to`."""
        _check_shapes(out, name, rows, self.dimensions)
        size = self._sizes.get(name)
        if size != rows.shape[1]:
            raise ValueError(f"{name} has gradients of {rows.shape[1]} numbers, expected {size}")
        first = self._first[name]
        out[:, first : first + size].add_(rows)


class SparseProjection:
    """Sparse Johnson-Lindenstrauss transform with s nonzeros ±1/√s for each input coordinate.

    The k outputs are s blocks of k/s, and a coordinate meets one output in each (the block
    construction of Kane and Nelson 2014; s = 1 is the signed count sketch of Charikar et al. 2002).
    Unlike there, each run of k/s successive coordinates is spread by a random permutation instead
    of independent draws: two of a run never share an output, so that the variance is no higher, and
    a projection is a gather, which costs no more than a scatter and adds in the same order on every
    device.
    """

    repeats_work = False

    def __init__(self, *, k: int, seed: int, nonzeros: int = 1) -> None:
        if nonzeros < 1 or k % nonzeros:
            raise ValueError(
                f"nonzeros is {nonzeros}, expected a divisor of the {k} dimensions: each block of "
                "outputs takes one."
            )
        self.dimensions, self._seed, self._nonzeros = k, seed, nonzeros
        self._plans: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    def add_to(self, out: Tensor, name: str, rows: Tensor) -> None:
        """Add x_m P_m by gathering, see `Projection.add_to`; 5 s bytes a coordinate are kept."""
        _check_shapes(out, name, rows, self.dimensions)
        order, signs = self._plan(name, rows.shape[1], rows.device)
        width = self.dimensions // self._nonzeros
        rows = rows.to(out.dtype)
        if self._nonzeros > 1:
            rows = rows / math.sqrt(self._nonzeros)
        whole = rows.shape[1] // width
        left = rows[:, whole * width :]
        for block in range(self._nonzeros):
            target = out[:, block * width : (block + 1) * width]
            for run in range(whole):
                run_signs = signs[block, run].to(out.dtype)
                target.addcmul_(rows.index_select(1, order[block, run]), run_signs)
            if left.shape[1]:  # a shorter last run is scattered to distinct outputs
                places = order[block, whole, : left.shape[1]].long()
                run_signs = signs[block, whole, : left.shape[1]].to(out.dtype)
                target.index_add_(1, places, left * run_signs)

    def _plan(self, name: str, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return, [s, runs, k/s] each, where to gather from (of the last run: add to) and signs."""
        if (name, device) not in self._plans:
            width = self.dimensions // self._nonzeros
            shape = (self._nonzeros, -(-size // width), width)
            counters = torch.arange(math.prod(shape))
            draws = hashed(parameter_key(self._seed, name, "order"), counters).view(shape)
            order = draws.argsort(dim=2, stable=True)
            order[:, : size // width] += width * torch.arange(size // width)[:, None]
            bits = hashed(parameter_key(self._seed, name, "sign"), counters).view(shape) & 1
            signs = (2 * bits - 1).to(torch.int8)
            self._plans[name, device] = (order.to(device, torch.int32), signs.to(device))
        return self._plans[name, device]


class DenseProjection:
    """Multiplies by a matrix of independent entries: ±1/√k, or normal with variance 1/k.

    The matrix is made in blocks of input coordinates. Blocks are kept while they fit in
    ``keep_bytes``; the others are made anew in each call, so rows of several batches should come
    together: with 16 rows and k = 8,192 on a CPU, a block of signs takes half as long to make as
    to multiply by, a normal one three times as long.

    A normal entry is one of 65,536 quantiles of the normal distribution, picked by 16 bits of the
    hash and scaled to unit variance: a table made on the CPU in float64 gives the same bits
    everywhere, where logarithms and cosines would not. The largest is 4.3 standard deviations.
    """

    def __init__(
        self,
        kind: Literal["rademacher", "gaussian"],
        *,
        k: int,
        seed: int,
        keep_bytes: int = KEEP_BYTES,
        block_bytes: int | None = None,
    ) -> None:
        self.dimensions, self._seed, self._kind = k, seed, kind
        self._entries = (sign_table() if kind == "rademacher" else normal_table()) / math.sqrt(k)
        self._per_word = 64 if kind == "rademacher" else 4
        self._left, self._block_bytes = keep_bytes, block_bytes
        self._tables: dict[torch.device, Tensor] = {}
        self._kept: dict[tuple[str, int, torch.device], Tensor] = {}
        self._overflowed = False

    @property
    def repeats_work(self) -> bool:
        """Whether some blocks did not fit in ``keep_bytes``; known after the first rows."""
        return self._overflowed

    def add_to(self, out: Tensor, name: str, rows: Tensor) -> None:
        """Add x_m P_m block by block, see `Projection.add_to`."""
        _check_shapes(out, name, rows, self.dimensions)
        bound = self._block_bytes or BLOCK_BYTES.get(rows.device.type, 2**22)
        step = max(1, bound // (4 * self.dimensions))
        for start in range(0, rows.shape[1], step):
            part = rows[:, start : start + step]
            block = self._block(name, start, part.shape[1], rows.device)
            out.addmm_(part.to(out.dtype), block.to(out.dtype))

    def _block(self, name: str, start: int, count: int, device: torch.device) -> Tensor:
        kept = self._kept.get((name, start, device))
        if kept is not None:
            return kept
        block = self._make_block(name, start, count, device)
        size = block.untyped_storage().nbytes()  # whole words, where k cuts the last one
        if size > self._left:
            self._overflowed = True
        else:
            self._left -= size
            self._kept[name, start, device] = block
        return block

    def _make_block(self, name: str, start: int, count: int, device: torch.device) -> Tensor:
        """Return rows ``start`` to ``start + count`` of the parameter's matrix, [count, k]."""
        if device not in self._tables:
            self._tables[device] = self._entries.to(device)
        words = -(-self.dimensions // self._per_word)
        counters = torch.arange(start * words, (start + count) * words, device=device)
        draws = hashed(parameter_key(self._seed, name, self._kind), counters)
        if self._kind == "rademacher":
            index = draws.view(torch.uint8).int()
        else:
            index = draws.view(torch.int16).int() & 0xFFFF
        entries = self._tables[device].index_select(0, index).view(count, -1)
        return entries[:, : self.dimensions]


def make_projection(
    kind: Kind,
    sizes: Mapping[str, int],
    *,
    k: int = 8192,
    seed: int = 0,
    nonzeros: int = 1,
    keep_bytes: int = KEEP_BYTES,
) -> Projection:
    """Return a projection of gradients whose parameters have the given sizes.

    Args:
        kind: ``none``, ``sjlt`` (`SparseProjection`), ``rademacher`` or ``gaussian``
            (`DenseProjection`).
        sizes: Numbers in each parameter, by name.
        k: Dimensions; ``none`` has as many as there are parameters.
        seed: Of the matrices.
        nonzeros: s of ``sjlt``.
        keep_bytes: Memory for blocks of a dense matrix.

    Raises:
        ValueError: If a setting is unknown or out of range.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1 dimension.")
    if kind == "none":
        return NoProjection(sizes)
    if kind == "sjlt":
        return SparseProjection(k=k, seed=seed, nonzeros=nonzeros)
    if kind in ("rademacher", "gaussian"):
        return DenseProjection(kind, k=k, seed=seed, keep_bytes=keep_bytes)
    raise ValueError(f"no projection {kind!r}, expected one of none, sjlt, rademacher, gaussian.")


def parameter_key(seed: int, name: str, purpose: str) -> int:
    """Return the key, 64 bits with sign, of a parameter's own stream of hashes."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def hashed(key: int, counters: Tensor) -> Tensor:
    """Return 64 random bits for each counter: number ``counter`` of SplitMix64 seeded by ``key``.

    Source: Steele, Lea and Flood 2014, with the constants of Stafford's variant 13. Products of
    int64 tensors wrap as unsigned ones do; right shifts repeat the sign, which is masked away.

    Args:
        key: 64 bits with sign.
        counters: int64, from 0.

    Returns:
        int64, shaped as ``counters``.
    """
    state = (counters + 1) * _signed(0x9E3779B97F4A7C15) + key
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def sign_table() -> Tensor:
    """Return the eight signs that each byte stands for, lowest bit first, [256, 8]."""
    bits = torch.arange(256)[:, None].bitwise_right_shift(torch.arange(8)).bitwise_and(1)
    return bits.float() * 2 - 1


def normal_table() -> Tensor:
    """Return 65,536 equally likely values close to normal, of mean 0 and variance 1."""
    levels = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    quantiles: Tensor = torch.special.ndtri(levels)
    quantiles = (quantiles - quantiles.flip(0)) / 2  # exactly symmetric
    return (quantiles / quantiles.square().mean().sqrt()).float()


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shifted(words: Tensor, bits: int) -> Tensor:
    return words.bitwise_right_shift(bits).bitwise_and(2 ** (64 - bits) - 1)


def _check_shapes(out: Tensor, name: str, rows: Tensor, k: int) -> None:
    if rows.ndim != 2 or out.shape != (len(rows), k):
        raise ValueError(
            f"{name}: gradients {list(rows.shape)} cannot be added to {list(out.shape)}, expected "
            f"[n, d] and [n, {k}]."
        )
