"""Row numbers as ranges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def row_ranges(rows: NDArray[Any]) -> list[range]:
    """Return ascending row numbers as ranges of successive ones."""
    if not len(rows):
        return []
    parts = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return [range(int(part[0]), int(part[-1]) + 1) for part in parts]


def spoken(ranges: Sequence[range]) -> str:
    """Return the first ranges in words, last rows included."""
    named = [f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in ranges[:4]]
    more = f" and {len(ranges) - 4} other ranges" if len(ranges) > 4 else ""
    return ", ".join(named) + more
