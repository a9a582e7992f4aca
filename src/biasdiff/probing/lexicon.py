"""Words that name a social group, by bias type, each with the word it is exchanged for."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from biasdiff.data.files import read_rows
from biasdiff.data.shipped_sets import FOLDER
from biasdiff.errors import DataError, nearest

FILE = FOLDER / "group_words.csv"
COLUMNS = ("bias_type", "word", "swap")


@dataclass(frozen=True)
class GroupWord:
    """A group word.

    Attributes:
        bias_type: Kind of bias it belongs to.
        word: One or more words, in lower case unless always written with a capital.
        swap: What stands in its place in a twin; empty for a word that is recognised only.
    """

    bias_type: str
    word: str
    swap: str


class Lexicon:
    """Group words by bias type."""

    def __init__(self, words: Iterable[GroupWord]) -> None:
        self.words = tuple(words)
        self._known: dict[str, set[str]] = {}
        for entry in self.words:
            known = self._known.setdefault(entry.bias_type, set())
            for phrase in (entry.word, entry.swap):
                known.update(phrase.lower().split())

    def knows(self, word: str, bias_type: str) -> bool:
        """Tell whether a single word belongs to a group word of the type."""
        return word.lower() in self._known.get(bias_type, set())

    def swaps(self, bias_types: Iterable[str] | None = None) -> dict[str, GroupWord]:
        """Return the entries that have a swap, by word, the first of each word.

        Args:
            bias_types: Only of these types.
        """
        wanted = None if bias_types is None else set(bias_types)
        found: dict[str, GroupWord] = {}
        for entry in self.words:
            if entry.swap and (wanted is None or entry.bias_type in wanted):
                found.setdefault(entry.word, entry)
        return found


def load_lexicon(path: Path | None = None) -> Lexicon:
    """Read a lexicon; the shipped one if no file is named.

    Args:
        path: CSV with the columns bias_type, word and swap.

    Raises:
        DataError: If a column is missing or a word is empty.
    """
    source = FILE if path is None else path
    rows = read_rows(source)
    for name in COLUMNS:
        if name not in rows[0]:
            raise DataError(
                f"{source} has no column {name!r}{nearest(name, rows[0])}",
                expected=f"the columns {', '.join(COLUMNS)}",
                remedy="rename the column",
            )
    for number, row in enumerate(rows):
        if not all(str(row.get(name) or "").strip() for name in ("word", "bias_type")):
            raise DataError(
                f"{source} row {number}: 'word' or 'bias_type' is empty",
                expected="both",
                remedy="mend or remove the row",
            )
    return Lexicon(GroupWord(*(str(row.get(n) or "").strip() for n in COLUMNS)) for row in rows)


def save_lexicon(lexicon: Lexicon, path: Path) -> None:
    """Write a lexicon for editing."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([w.bias_type, w.word, w.swap] for w in lexicon.words)
