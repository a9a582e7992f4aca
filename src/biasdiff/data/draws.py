"""The shipped pairs divided once and for all: reference, validation and test draws, and the rest.

The reference draw is what attribution compares with (the paper uses 891 generated sentences), the
validation draw serves tuning, the test draw final figures only, and the rest makes train sets. No
stereotype is in two of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from biasdiff.data.probe import ProbePair
from biasdiff.data.shipped_sets import shipped_pairs
from biasdiff.data.stratification import grouped, proportional_quotas
from biasdiff.errors import DataError, nearest

SIZES = {"reference": 891, "validation": 500, "test": 500}
REST = "rest"
SEED = 0


@dataclass(frozen=True)
class Draws:
    """Four lists of pairs without a stereotype in common."""

    reference: list[ProbePair]
    validation: list[ProbePair]
    test: list[ProbePair]
    rest: list[ProbePair]


def shipped_draws() -> Draws:
    """Return the draws of the shipped pairs; they are the same for everybody."""
    return divide(shipped_pairs(), SIZES, seed=SEED)


def shipped_draw(name: str) -> list[ProbePair]:
    """Return one draw of the shipped pairs.

    Raises:
        DataError: If there is no draw of that name.
    """
    draws = vars(shipped_draws())
    if name not in draws:
        raise DataError(
            f"no draw of the shipped pairs is called {name!r}{nearest(name, draws)}",
            expected=f"one of {', '.join(draws)}",
            remedy="mend the name",
        )
    drawn: list[ProbePair] = draws[name]
    return drawn


def divide(pairs: Sequence[ProbePair], sizes: Mapping[str, int], *, seed: int) -> Draws:
    """Divide pairs by stereotype, each draw stratified by bias type.

    A draw takes of each type the share that the type has of all pairs. Stereotypes are taken whole,
    in an order drawn from the seed, as long as they fit; where the last one does not, the pairs of
    it that are left over stay in no draw.

    Args:
        pairs: Each with a ``stereotype_id``.
        sizes: Pairs of ``reference``, ``validation`` and ``test``.
        seed: Of the order.

    Raises:
        DataError: If there are too few pairs of a type.
    """
    shuffle = random.Random(seed)
    by_type = grouped(pairs, lambda pair: pair.bias_type)
    members = {name: len(group) for name, group in by_type.items()}
    quotas = {name: proportional_quotas(members, size) for name, size in sizes.items()}
    drawn: dict[str, list[ProbePair]] = {name: [] for name in (*sizes, REST)}
    for bias_type in sorted(by_type):
        claims = grouped(by_type[bias_type], lambda pair: pair.stereotype_id)
        waiting = sorted(claims)
        shuffle.shuffle(waiting)
        for name in sizes:
            wanted = quotas[name][bias_type]
            chosen, waiting = _fill(claims, waiting, wanted)
            if len(chosen) < wanted:
                raise DataError(
                    f"only {len(chosen)} pairs of {bias_type!r} are left for the {name} draw",
                    expected=f"{wanted}",
                    remedy="ask for a smaller draw or add pairs of that type",
                )
            drawn[name] += chosen
        drawn[REST] += [pair for name in waiting for pair in claims[name]]
    return Draws(**drawn)


def _fill(
    claims: Mapping[str, list[ProbePair]], waiting: Sequence[str], wanted: int
) -> tuple[list[ProbePair], list[str]]:
    """Take whole stereotypes while they fit, then a part of one if that is needed."""
    chosen: list[ProbePair] = []
    left: list[str] = []
    for name in waiting:
        if len(chosen) + len(claims[name]) <= wanted:
            chosen += claims[name]
        else:
            left.append(name)
    if len(chosen) < wanted and left:
        chosen += claims[left.pop(0)][: wanted - len(chosen)]
    return chosen, left
