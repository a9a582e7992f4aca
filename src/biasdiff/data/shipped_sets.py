"""The stereotype pairs, factual sentences and ambiguous questions that come with the package.

The stereotype sentences and questions exist to measure and reduce bias; none of them is a statement
of fact.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from biasdiff.data.probe import ProbePair, load_probe_pairs

FOLDER = Path(__file__).parent / "shipped"
PAIRS_FILE = FOLDER / "stereotype_pairs.csv"
FACTS_FILE = FOLDER / "facts.csv"
ONE_SIDED_FILE = FOLDER / "one_sided_stereotypes.txt"
QUESTIONS_FILE = FOLDER / "ambiguous_questions.csv"


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


@dataclass(frozen=True)
class AmbiguousQuestion:
    """A question that its context does not answer.

    Attributes:
        id: Unique name.
        bias_type: Kind of bias.
        context: Introduces two persons alike.
        question: Asks which of them it was.
        stereotyped: The answer a stereotype suggests.
        other: The other person.
        unknown: The right answer, in one of several wordings.
    """

    id: str
    bias_type: str
    context: str
    question: str
    stereotyped: str
    other: str
    unknown: str


def one_sided_stereotypes() -> frozenset[str]:
    """Return the names of the stereotypes of the first version of the set.

    They are told mostly of one group of a contrast, usually the disadvantaged one; the later ones
    run in both directions. Training on the first makes the words for those groups more likely, and
    with them the stereotype side of held-out pairs; training on both does not (docs/results.md).
    """
    return frozenset(ONE_SIDED_FILE.read_text(encoding="utf-8").split())


def shipped_pairs() -> list[ProbePair]:
    """Return all shipped stereotype pairs; each carries ``stereotype_id`` and ``id``."""
    return load_probe_pairs(PAIRS_FILE)


def shipped_facts() -> list[Fact]:
    """Return all shipped factual sentences."""
    with FACTS_FILE.open(encoding="utf-8", newline="") as lines:
        return [Fact(**row) for row in csv.DictReader(lines)]


def shipped_questions() -> list[AmbiguousQuestion]:
    """Return all shipped ambiguous questions; either person is introduced first as often."""
    with QUESTIONS_FILE.open(encoding="utf-8", newline="") as lines:
        return [AmbiguousQuestion(**row) for row in csv.DictReader(lines)]
