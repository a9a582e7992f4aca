"""What differs between the two sides of a pair, and what is left when that is masked."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from biasdiff.data.probe import ProbePair

MASK = "_"
_EDGE = re.compile(r"^\W+|\W+$")
_POSSESSIVE = re.compile(r"['’]s$")


@dataclass(frozen=True)
class Difference:
    """The words in which two sentences differ.

    Attributes:
        more: Words of ``sent_more`` only, lower case, without the punctuation around them.
        less: Words of ``sent_less`` only.
        masked: The words they share, each run of differing words replaced by `MASK`.
    """

    more: tuple[str, ...]
    less: tuple[str, ...]
    masked: tuple[str, ...]


def bare(word: str) -> str:
    """Return a word in lower case without punctuation around it."""
    return _EDGE.sub("", word).lower()


def difference(pair: ProbePair) -> Difference:
    """Align the two sides word by word (longest common blocks) and return what differs."""
    return _difference(pair.sent_more, pair.sent_less)


def _difference(left: str, right: str) -> Difference:
    a, b = ([bare(word) for word in text.split()] for text in (left, right))
    more: list[str] = []
    less: list[str] = []
    masked: list[str] = []
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        if kind == "equal":
            masked += a[start:end]
            continue
        more += a[start:end]
        less += b[other_start:other_end]
        masked.append(MASK)
    return Difference(tuple(more), tuple(less), tuple(masked))


def without_possessive(word: str) -> str:
    """Return ``woman`` for ``woman's``."""
    return _POSSESSIVE.sub("", word)
