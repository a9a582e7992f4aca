"""Rules of writing that the validator and the swaps share: articles, and where sentences begin."""

from __future__ import annotations

import re
import unicodedata

_SILENT_H = re.compile(r"hour|honest|honou?r|heir", re.IGNORECASE)
_LIKE_YOU_OR_WON = re.compile(
    r"eu|ewe|on(?:c?e)\b|u(?:-|bi|gan|k|ni(?!dent|[mnr])|nanim|ra|ri|ro|ru|s[aeu]|t[eio]|yg)",
    re.IGNORECASE,
)
_NUMBER_LIKE_EIGHT = re.compile(r"8|1[18](?!\d)|1[18]\d\d(?!\d)")
_INITIALS = re.compile(r"[A-Z]+s?\b")
_LETTERS_WITH_AN = "AEFHILMNORSX"
_BEFORE_A_SENTENCE = re.compile(r"(?:^|[.?!…:][\"'”’)]*\s|[,;–—-]\s(?=[\"“'‘]))[\"'“‘(]*$")


def article(word: str) -> str | None:
    """Return the article by the sound a word begins with, None if that cannot be told.

    It cannot for initials that may be spelt out or read as a word: "an FBI agent", "a NASA one".
    """
    if word[:1].isdigit():
        return "an" if _NUMBER_LIKE_EIGHT.match(word) else "a"
    plain = unicodedata.normalize("NFD", word)
    vowel = plain[:1].lower() in tuple("aeiou") and not _LIKE_YOU_OR_WON.match(plain)
    as_word = "an" if vowel or _SILENT_H.match(plain) else "a"
    if _INITIALS.match(plain):
        spelt = "an" if plain[0] in _LETTERS_WITH_AN else "a"
        return spelt if spelt == as_word else None
    return as_word


def begins_sentence(text: str, at: int) -> bool:
    """Tell whether a sentence, or one in quotation marks, begins at a place of a text."""
    return bool(_BEFORE_A_SENTENCE.search(text[:at]))
