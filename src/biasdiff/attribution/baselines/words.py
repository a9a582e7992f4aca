"""What the lexical baselines take for words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from biasdiff.attribution.material import Material
from biasdiff.errors import DataError

WORD = r"\b\w\w+\b"
"""Two letters or digits or more, scikit-learn's default; a script without spaces yields few."""
_find = re.compile(WORD).findall


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case, in their order."""
    return _find(text.lower())


def stereotype_sentences(material: Material) -> list[str]:
    """Return the probe's stereotype sentences."""
    return [pair.sent_more for pair in material.pairs]


def require_words(texts: Sequence[str], what: str) -> None:
    """Refuse texts without any word.

    Raises:
        DataError: If none of them holds a word; ``what`` says whose they are.
    """
    if not any(words_of(text) for text in texts):
        raise DataError(
            f"no word in any of the {len(texts)} {what}",
            expected="words of two letters or more",
            remedy="leave out the baselines that count words",
        )
