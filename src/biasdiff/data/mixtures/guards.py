"""What must not be in a train set: texts of the probe and of evaluation sets, and their like."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from biasdiff.data.draws import shipped_draws
from biasdiff.data.mixtures.rows import MixtureRow
from biasdiff.data.near_duplicates import NGRAM, THRESHOLD, near_duplicates, normalised
from biasdiff.data.probe import ProbePair
from biasdiff.data.sources.corpus import Record
from biasdiff.data.sources.finding import find_files
from biasdiff.data.sources.registry import CORPORA
from biasdiff.errors import DataError

EVALUATION_CORPORA = ("crows_pairs", "stereoset", "seat", "winobias", "winogender", "bbq")
MIN_WORDS = 4
"""Shorter evaluation texts (SEAT's single words) are no sentence that a train text could repeat."""


@dataclass(frozen=True)
class Check:
    """One protected set and what it kept out.

    Attributes:
        name: Of the set.
        texts: Sentences compared with; 0 where the set was not at hand.
        exact: Candidate rows equal to one of them after normalisation.
        near: Further rows of a word-3-gram Jaccard similarity of `THRESHOLD` or more.
        note: Why nothing was compared, empty otherwise.
    """

    name: str
    texts: int
    exact: int = 0
    near: int = 0
    note: str = ""


def protected_sets(
    probe: Sequence[ProbePair] | None, *, own: Collection[str]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the texts that no train row may repeat, by set, and the sets that are left out.

    Args:
        probe: The user's probe pairs; None for the shipped reference draw.
        own: Sources of the mixture; an evaluation set made of the same corpus is left out, and the
            card says that the mixture must not be evaluated on it.

    Returns:
        The texts by set; the reason by set that was left out.
    """
    draws = shipped_draws()
    sets = {
        "probe": _both_sides(draws.reference if probe is None else probe),
        "validation draw": _both_sides(draws.validation),
        "test draw": _both_sides(draws.test),
    }
    left_out: dict[str, str] = {}
    for name in EVALUATION_CORPORA:
        if name in own:
            left_out[name] = "the mixture is made of it; do not evaluate on it"
            continue
        files = find_files(CORPORA[name])
        if files is None:
            left_out[name] = f"not at hand; 'biasdiff data fetch {name}' brings it"
            continue
        records = (item for item in CORPORA[name].read(files) if isinstance(item, Record))
        sets[name] = [r.text for r in records if len(r.text.split()) >= MIN_WORDS]
    return sets, left_out


def _both_sides(pairs: Sequence[ProbePair]) -> list[str]:
    return [text for pair in pairs for text in (pair.sent_more, pair.sent_less) if text]


def screen(
    rows: Sequence[MixtureRow], protected: Mapping[str, Sequence[str]]
) -> tuple[list[MixtureRow], list[Check]]:
    """Drop rows that repeat a protected text, exactly or nearly.

    Returns:
        The rows that are left, and one check per set.
    """
    checks: list[Check] = []
    dropped: set[int] = set()
    texts = [row.text for row in rows]
    for name, others in protected.items():
        known = {normalised(text) for text in others}
        exact = {i for i, text in enumerate(texts) if normalised(text) in known}
        near = {match.index for match in near_duplicates(texts, others)} - exact
        checks.append(Check(name, len(others), len(exact), len(near)))
        dropped |= exact | near
    return [row for i, row in enumerate(rows) if i not in dropped], checks


def without_stereotypes(
    rows: Sequence[MixtureRow], probe: Sequence[ProbePair] | None
) -> tuple[list[MixtureRow], int]:
    """Drop rows that state a stereotype of a probe pair, and say how many.

    Args:
        rows: Candidates.
        probe: The user's pairs; None for the shipped reference draw.

    Raises:
        DataError: If the probe's pairs carry no ``stereotype_id``.
    """
    pairs = shipped_draws().reference if probe is None else probe
    names = {pair.stereotype_id for pair in pairs}
    if "" in names:
        raise DataError(
            "the probe has pairs without 'stereotype_id'",
            expected="one for every pair, to keep stereotypes disjoint",
            remedy="add the column or give --disjoint sentence",
        )
    kept = [row for row in rows if row.stereotype_id not in names]
    return kept, len(rows) - len(kept)


STATED = f"word-{NGRAM}-gram Jaccard similarity of {THRESHOLD} or more"
