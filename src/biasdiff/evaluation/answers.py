"""Comparing what a model wrote with an expected answer."""

from __future__ import annotations

import re
import string
import unicodedata

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SYMBOLS = frozenset(string.punctuation)


def normalise_answer(text: str) -> str:
    """Return an answer as SQuAD compares it: lower case, bare words, single spaces.

    Punctuation and the articles a, an and the are dropped (Rajpurkar et al., 2016), typographic
    punctuation as well as ASCII's. A text of nothing else keeps its articles, and so is not empty
    without need.
    """
    lower = unicodedata.normalize("NFC", text).lower()
    bare = "".join(
        c for c in lower if c not in _SYMBOLS and not unicodedata.category(c).startswith("P")
    )
    return " ".join(_ARTICLES.sub(" ", bare).split()) or " ".join(bare.split())


def is_exact(found: str, expected: str) -> bool:
    """Tell whether two answers are the same after `normalise_answer`, and not empty."""
    return bool(wanted := normalise_answer(expected)) and normalise_answer(found) == wanted


def holds(found: str, expected: str) -> bool:
    """Tell whether the words of an answer occur in a text side by side, after normalisation."""
    wanted = normalise_answer(expected)
    return bool(wanted) and f" {wanted} " in f" {normalise_answer(found)} "
