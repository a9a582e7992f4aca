"""A mixture drawn by its recipe, guarded, and described by a card."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from biasdiff.data.mixtures.guards import Check, protected_sets, screen, without_stereotypes
from biasdiff.data.mixtures.recipes import Part, Recipe
from biasdiff.data.mixtures.rows import SHIPPED_LICENCE, MixtureRow, Pool, pool, sample, source_name
from biasdiff.data.mixtures.separability import Separability, separability
from biasdiff.data.probe import ProbePair
from biasdiff.errors import DataError

Disjoint = Literal["sentence", "stereotype"]


@dataclass(frozen=True)
class Mixture:
    """Rows in random order, and what is said about them.

    Attributes:
        recipe: As it was drawn (its shares after any change).
        rows: The train set.
        seed: Of every draw.
        disjoint: ``stereotype``: no row states a stereotype of the probe.
        checks: Overlap with protected sets.
        shared_stereotypes: Candidates dropped for a stereotype of the probe.
        pools: What each source had to offer.
        separability: How easily the classes are told apart.
    """

    recipe: Recipe
    rows: list[MixtureRow]
    seed: int
    disjoint: Disjoint
    checks: list[Check]
    shared_stereotypes: int
    pools: dict[str, Pool]
    separability: Separability


def build_mixture(
    recipe: Recipe,
    *,
    size: int,
    seed: int = 0,
    biased_share: float | None = None,
    equal_types: bool = False,
    disjoint: Disjoint = "stereotype",
    probe: Sequence[ProbePair] | None = None,
) -> Mixture:
    """Draw a mixture, the same for the same arguments and files.

    Rows that repeat a text of the probe, of the validation or test draw or of an evaluation set
    (as far as it is at hand) are dropped before the draw, exact and near repeats alike.

    Args:
        recipe: See `MIXTURES`.
        size: Rows.
        seed: Of every draw.
        biased_share: Share of biased rows, None for the recipe's own.
        equal_types: Draw the same number of every bias type instead of keeping their shares.
        disjoint: ``sentence``, or ``stereotype`` to keep the probe's stereotypes out as well.
        probe: The pairs attribution will use; None for the shipped reference draw.

    Raises:
        DataError: If a source cannot be read or has too few rows.
    """
    if biased_share is not None:
        recipe = recipe.rebalanced(biased_share)
    sources = list(dict.fromkeys(part.source for part in recipe.parts))
    pools = {source_name(source): pool(source) for source in sources}
    protected, left_out = protected_sets(probe, own=sources)
    if recipe.of_pairs is not None:
        rows = recipe.of_pairs(size, seed)
        kept, checks = screen(rows, protected)
        if len(kept) < len(rows):
            raise DataError(
                f"{recipe.name}: {len(rows) - len(kept)} rows repeat a protected text",
                expected="none in a mixture of the shipped pairs",
                remedy="give another probe, or a mixture that is drawn from parts",
            )
        shared = 0
        if disjoint == "stereotype":
            left, shared = without_stereotypes(rows, probe)
            if left != rows:
                raise DataError(
                    f"{recipe.name}: {shared} rows state a stereotype of the probe",
                    expected="the shipped reference draw as probe",
                    remedy="give --disjoint sentence",
                )
    else:
        candidates = [row for offered in pools.values() for row in offered.rows]
        shared = 0
        if disjoint == "stereotype" and any(row.stereotype_id for row in candidates):
            candidates, shared = without_stereotypes(candidates, probe)
        candidates, checks = screen(candidates, protected)
        rows = _draw(recipe, candidates, size, seed, equal_types)
    random.Random(seed).shuffle(rows)
    checks += [Check(name, 0, note=note) for name, note in left_out.items()]
    found = separability(
        [row.text for row in rows],
        [row.is_bias for row in rows],
        [row.group for row in rows],
        seed=seed,
    )
    pools = pools or {"probing_set": Pool(rows, SHIPPED_LICENCE)}
    return Mixture(recipe, rows, seed, disjoint, checks, shared, pools, found)


def _draw(
    recipe: Recipe, candidates: Sequence[MixtureRow], size: int, seed: int, equal_types: bool
) -> list[MixtureRow]:
    rows: list[MixtureRow] = []
    counts = _counts(recipe.parts, size)
    for number, (part, count) in enumerate(zip(recipe.parts, counts, strict=True)):
        source = source_name(part.source)
        offered = [r for r in candidates if (r.source, r.is_bias) == (source, part.is_bias)]
        if len(offered) < count:
            kind = "biased" if part.is_bias else "other"
            raise DataError(
                f"{recipe.name}: {count} {kind} rows of {part.source} asked for",
                expected=f"at most {len(offered)}, which it has after the guards",
                remedy="ask for a smaller size or another share",
            )
        rows += sample(offered, count, seed=seed + number, equal_types=equal_types)
    repeated = [name for name, n in Counter(row.id for row in rows).items() if n > 1]
    if repeated:
        raise DataError(
            f"{recipe.name}: {repeated[0]!r} is drawn by two parts",
            expected="parts that do not overlap",
            remedy="name each source and class once",
        )
    return rows


def _counts(parts: Sequence[Part], size: int) -> list[int]:
    """Return whole numbers in the ratio of the shares that add up to ``size``."""
    edges, total = [0], 0.0
    for part in parts:
        total += part.share
        edges.append(round(total * size))
    return [after - before for before, after in itertools.pairwise(edges)]
