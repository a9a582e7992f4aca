"""Twins for sentences that have none: group words exchanged as a lexicon says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from biasdiff.data.probe import ProbePair
from biasdiff.probing.lexicon import GroupWord, Lexicon

_PRONOUNS = {
    "he": "she",
    "she": "he",
    "him": "her",
    "himself": "herself",
    "herself": "himself",
    "hers": "his",
}
_BEFORE_POSSESSED = re.compile(r"\s+[a-z'-]+", re.IGNORECASE)
_NO_NOUN = re.compile(
    r"\s+(?:and|or|but|to|in|on|at|for|from|with|by|about|as|if|when|that|than|so|because|while|"
    r"after|before|again|out|up|down|off|over|there|here|the|a|an|is|was)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"\b(a|an)(\s+)(\w)", re.IGNORECASE)
_SILENT_H = re.compile(r"hour|honest|hono|heir", re.IGNORECASE)
_LIKE_YOU = re.compile(r"one|once|uni(?!n)|use|eu|ut", re.IGNORECASE)


@dataclass(frozen=True)
class Augmented:
    """What became of the sentences without a twin.

    Attributes:
        pairs: All pairs, with a twin now where one could be made.
        made: Number of twins made.
        left: Pairs whose sentence holds no group word of their type that has a swap.
    """

    pairs: list[ProbePair]
    made: int
    left: list[ProbePair]


def augment(pairs: Sequence[ProbePair], lexicon: Lexicon) -> Augmented:
    """Give every pair without ``sent_less`` a twin, as far as the lexicon reaches.

    Every group word of the pair's type is exchanged; for gender the pronouns as well. Articles are
    mended. Such twins need a reader: a swap may not fit the sentence, and "her" is told from "him"
    by the word after it only.

    Args:
        pairs: Pairs; those that have a twin stay as they are.
        lexicon: Group words and their swaps.
    """
    done: list[ProbePair] = []
    left: list[ProbePair] = []
    made = 0
    for pair in pairs:
        if pair.sent_less.strip():
            done.append(pair)
            continue
        twin = swap_group_words(pair.sent_more, pair.bias_type, lexicon)
        if twin is None:
            left.append(pair)
        else:
            made += 1
            done.append(replace(pair, sent_less=twin))
    return Augmented(done, made, left)


def swap_group_words(text: str, bias_type: str, lexicon: Lexicon) -> str | None:
    """Return the text with the group words of a type exchanged, None if it holds none."""
    swaps = {word.lower(): entry for word, entry in lexicon.swaps([bias_type]).items()}
    if bias_type == "gender":
        pronouns = (*_PRONOUNS, "his", "her")
        swaps |= {word: GroupWord(bias_type, word, word) for word in pronouns}
    if not swaps:
        return None
    phrases = sorted(swaps, key=len, reverse=True)
    pattern = re.compile(
        rf"(?<![\w-])({'|'.join(map(re.escape, phrases))})(?=(?:'s)?(?![\w-]))", re.IGNORECASE
    )
    swapped, count = pattern.subn(lambda match: _other(match, text, swaps), text)
    return _with_articles(swapped) if count and swapped != text else None


def _other(match: re.Match[str], text: str, swaps: Mapping[str, GroupWord]) -> str:
    word = match[0]
    lower = word.lower()
    if lower == "his":
        other = "her" if _takes_noun(text[match.end() :]) else "hers"
    elif lower == "her":
        other = "his" if _takes_noun(text[match.end() :]) else "him"
    else:
        other = _PRONOUNS.get(lower, swaps[lower].swap)
    return other[:1].upper() + other[1:] if word[:1].isupper() and not word.isupper() else other


def _takes_noun(rest: str) -> bool:
    """Guess whether the word after a possessive is what is possessed."""
    return bool(_BEFORE_POSSESSED.match(rest)) and not _NO_NOUN.match(rest)


def _with_articles(text: str) -> str:
    def mend(match: re.Match[str]) -> str:
        word = text[match.start(3) :]
        vowel = match[3].lower() in "aeiou" and not _LIKE_YOU.match(word)
        article = "an" if vowel or _SILENT_H.match(word) else "a"
        return (article.capitalize() if match[1][0].isupper() else article) + match[2] + match[3]

    return _ARTICLE.sub(mend, text)
