"""Which tokens two sentences share, as CrowS-Pairs aligns them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def shared_tokens(
    left: Sequence[int], right: Sequence[int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for every token of two sequences whether it is shared, [n] and [m].

    Shared are the "equal" blocks of ``difflib.SequenceMatcher`` on the token ids, as in the public
    CrowS-Pairs code; as many tokens are shared on the left as on the right. Nothing need be shared,
    and one side may be all shared while the other has more.

    Args:
        left: Token ids, without the start token.
        right: Likewise.
    """
    kept = np.zeros(len(left), dtype=bool), np.zeros(len(right), dtype=bool)
    matcher = difflib.SequenceMatcher(None, list(left), list(right), autojunk=False)
    for start, other, size in matcher.get_matching_blocks():
        kept[0][start : start + size] = True
        kept[1][other : other + size] = True
    return kept


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the number of leading tokens that two sequences have in common."""
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))
