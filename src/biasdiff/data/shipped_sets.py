"""The stereotype pairs and factual sentences that come with the package.

The stereotype sentences exist to measure and reduce bias; none of them is a statement of fact.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from biasdiff.data.probe import ProbePair, load_probe_pairs

FOLDER = Path(__file__).parent / "shipped"
PAIRS_FILE = FOLDER / "stereotype_pairs.csv"
FACTS_FILE = FOLDER / "facts.csv"


@dataclass(frozen=True)
class Fact:
    """A true sentence that links a subject and an object.

    Attributes:
        id: Unique name.
        relation: How they are linked, for example ``capital_of``.
        subject: Occurs exactly once in ``text``.
        object: Occurs exactly once in ``text``.
        text: The sentence.
        masked_sentence: The sentence with ``[MASK]`` for the object, as in T-REx.
    """

    id: str
    relation: str
    subject: str
    object: str
    text: str
    masked_sentence: str


def shipped_pairs() -> list[ProbePair]:
    """Return all shipped stereotype pairs; each carries ``stereotype_id`` and ``id``."""
    return load_probe_pairs(PAIRS_FILE)


def shipped_facts() -> list[Fact]:
    """Return all shipped factual sentences."""
    with FACTS_FILE.open(encoding="utf-8", newline="") as lines:
        return [Fact(**row) for row in csv.DictReader(lines)]
