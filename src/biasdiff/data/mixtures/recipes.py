"""The mixtures by name: those of the paper (Table 7) and two of ours that are harder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from biasdiff.data.mixtures.crossed import crossed
from biasdiff.data.mixtures.matched import matched
from biasdiff.data.mixtures.rows import FACTS, PROBING_SET, MixtureRow
from biasdiff.errors import DataError, nearest


@dataclass(frozen=True)
class Part:
    """A share of a mixture.

    Attributes:
        source: Corpus, ``probing_set``, ``facts`` or a file.
        is_bias: Which rows of the source are taken: 1 the biased ones, 0 the others.
        share: Of the whole mixture; the shares add up to 1.
    """

    source: str
    is_bias: Literal[0, 1]
    share: float


@dataclass(frozen=True)
class Recipe:
    """How a mixture is made: of parts, or of pairs by a function of its own.

    Attributes:
        name: On the command line.
        what: One sentence.
        parts: Empty for a mixture of pairs.
        of_pairs: Makes ``size`` rows from the rest draw with a seed.
    """

    name: str
    what: str
    parts: tuple[Part, ...] = ()
    of_pairs: Callable[[int, int], list[MixtureRow]] | None = None

    @property
    def biased_share(self) -> float:
        """Share of biased rows."""
        return sum(part.share for part in self.parts if part.is_bias) if self.parts else 0.5

    def rebalanced(self, biased_share: float) -> Recipe:
        """Return the recipe with another share of biased rows; parts of a class keep their ratio.

        Raises:
            DataError: If a class of which rows are asked has no part, or the recipe is of pairs.
        """
        old = self.biased_share
        if not self.parts:
            raise DataError(
                f"the mixture {self.name!r} is half and half by construction",
                expected="no --biased-share",
                remedy="leave it out or choose another mixture",
            )
        if (old in (0.0, 1.0)) and biased_share != old:
            raise DataError(
                f"the mixture {self.name!r} has only one class",
                expected=f"a biased share of {old:.0f}",
                remedy="add a part of the other class",
            )
        factor = {1: biased_share / old if old else 0, 0: (1 - biased_share) / (1 - old or 1)}
        parts = tuple(
            Part(part.source, part.is_bias, part.share * factor[part.is_bias])
            for part in self.parts
        )
        return Recipe(self.name, self.what, parts)


def _three_to_seven(biased: str, other: str) -> tuple[Part, Part]:
    return Part(biased, 1, 0.3), Part(other, 0, 0.7)


_ALL = (
    Recipe(
        "balance",
        "BUG gold, GAP and HateSpeech, stereotype and hate sentences in the majority (60 %)",
        (
            Part("bug", 1, 0.25),
            Part("hatespeech", 1, 0.35),
            Part("gap", 0, 0.20),
            Part("bug", 0, 0.10),
            Part("hatespeech", 0, 0.10),
        ),
    ),
    Recipe(
        "wino",
        "WinoBias, pro-stereotyped against anti-stereotyped, half and half",
        (Part("winobias", 1, 0.5), Part("winobias", 0, 0.5)),
    ),
    Recipe(
        "mix",
        "toxic sentences of RealToxicityPrompts : AG News = 3:7",
        _three_to_seven("realtoxicityprompts", "ag_news"),
    ),
    Recipe(
        "gen_mix",
        "stereotype sentences of the probing set, none of its draws : AG News = 3:7",
        _three_to_seven(PROBING_SET, "ag_news"),
    ),
    Recipe(
        "trex_mix",
        "stereotype sentences of the probing set, none of its draws : T-REx = 3:7",
        _three_to_seven(PROBING_SET, "trex"),
    ),
    Recipe(
        "shipped_mix",
        "stereotype sentences of the probing set : shipped facts = 3:7; needs nothing from outside",
        _three_to_seven(PROBING_SET, FACTS),
    ),
    Recipe(
        "matched",
        "stereotype sentences and, of other stereotypes, anti-stereotype twins, half and half",
        of_pairs=matched,
    ),
    Recipe(
        "crossed",
        "both sides of pairs, every group word and every claim equally often in both classes",
        of_pairs=crossed,
    ),
)
MIXTURES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def recipe_named(name: str) -> Recipe:
    """Return a mixture's recipe.

    Raises:
        DataError: If there is none of that name.
    """
    if name not in MIXTURES:
        raise DataError(
            f"no mixture is called {name!r}{nearest(name, MIXTURES)}",
            expected=f"one of {', '.join(MIXTURES)}, or a YAML file with a recipe",
            remedy="mend the name",
        )
    return MIXTURES[name]
