"""Stereotype sentences and, of other stereotypes, anti-stereotype twins: same style, same topics.

Since the shipped pairs state stereotypes in both directions (of women and of men), group words tell
little here; `crossed` makes sure that they tell nothing.
"""

from __future__ import annotations

import random

from biasdiff.data.draws import shipped_draw
from biasdiff.data.mixtures.rows import MixtureRow, pair_row, sample
from biasdiff.data.stratification import grouped
from biasdiff.errors import DataError


def matched(size: int, seed: int) -> list[MixtureRow]:
    """Draw ``size`` rows from the rest draw, half of them biased.

    The stereotypes of each bias type are dealt out to the two classes in turn, so that no
    stereotype is in both.

    Raises:
        DataError: If the rest draw is too small.
    """
    draw = random.Random(seed)
    pairs = [p for p in shipped_draw("rest") if p.stereo_antistereo == "stereo"]
    sides: dict[int, list[MixtureRow]] = {1: [], 0: []}
    for _, members in sorted(grouped(pairs, lambda p: p.bias_type).items()):
        claims = grouped(members, lambda p: p.stereotype_id)
        names = sorted(claims)
        draw.shuffle(names)
        dealt = {1: 0, 0: 0}
        for name in names:
            truth = min(dealt, key=lambda side: (dealt[side], -side))
            dealt[truth] += len(claims[name])
            sides[truth] += [
                pair_row(p, p.sent_more if truth else p.sent_less, truth) for p in claims[name]
            ]
    biased = size // 2
    wanted = {1: biased, 0: size - biased}
    short = [truth for truth in sides if len(sides[truth]) < wanted[truth]]
    if short:
        raise DataError(
            f"matched: {size} rows asked for",
            expected=f"at most {2 * min(map(len, sides.values()))}, which the rest draw holds",
            remedy="ask for fewer",
        )
    return [row for truth, rows in sides.items() for row in sample(rows, wanted[truth], seed=seed)]
