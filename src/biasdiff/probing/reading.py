"""Probe sets named on the command line, and random samples of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from biasdiff.data.probe import ProbePair, load_probe_pairs
from biasdiff.data.shipped_sets import shipped_pairs

SHIPPED = "shipped"


def read_probe(name: str) -> list[ProbePair]:
    """Read a probe file, or the shipped set for ``shipped``.

    Raises:
        DataError: As `load_probe_pairs`.
    """
    return shipped_pairs() if name == SHIPPED else load_probe_pairs(name)


def drawn(pairs: Sequence[ProbePair], count: int, *, seed: int) -> list[ProbePair]:
    """Return a random sample in random order, rows numbered anew."""
    sample = random.Random(seed).sample(list(pairs), min(count, len(pairs)))
    return [replace(pair, row=row) for row, pair in enumerate(sample)]
