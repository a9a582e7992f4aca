"""Twins for sentences that have none: group words exchanged as a lexicon says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from biasdiff.data.probe import ProbePair
from biasdiff.probing.lexicon import GroupWord, Lexicon
from biasdiff.probing.writing import article, begins_sentence

_PRONOUNS = {
    "he": "she",
    "she": "he",
    "him": "her",
    "her": "him",
    "himself": "herself",
    "herself": "himself",
    "his": "hers",
    "hers": "his",
}
_BEFORE_NOUN = {"her": "his", "his": "her"}
_BEFORE_POSSESSED = re.compile(r"\s+[\"'“‘(]?\w")
_NO_NOUN = re.compile(
    r"\s+(?:and|or|but|nor|to|into|onto|in|on|at|for|from|with|without|by|about|as|if|when|where|"
    r"who|whom|what|which|why|how|whether|that|than|so|because|while|until|since|although|though|"
    r"after|before|during|again|out|up|down|off|over|through|across|around|behind|towards?|there|"
    r"here|then|now|today|tomorrow|tonight|yesterday|too|not|also|the|a|an|this|these|those|some|"
    r"any|my|your|our|their|his|her|its|i|you|he|she|it|we|they|is|was|are|were)(?![\w'’-])",
    re.IGNORECASE,
)
_OPENING_QUOTE = re.compile(r"(?<!\w)['‘](?=\w)")


@dataclass(frozen=True)
class Augmented:
    """What became of the sentences without a twin.

    Attributes:
        pairs: The pairs that have a twin, old or new.
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
    """Return the text with the group words of a type exchanged, None if it holds none.

    A word in lower case in the lexicon is found in any case; one with a capital only with it, so
    that "Polish" leaves "polish" alone.
    """
    swaps = lexicon.swaps([bias_type])
    if bias_type == "gender":
        swaps |= {word: GroupWord(bias_type, word, other) for word, other in _PRONOUNS.items()}
    if not swaps:
        return None
    entries = {word.lower(): entry for word, entry in swaps.items()} | swaps
    phrases = "|".join(map(_as_written, sorted(swaps, key=len, reverse=True)))
    pattern = re.compile(
        r"(?<![\w-])(?:(?P<article>an?|An?|AN)(?P<gap>\s+[\"'“‘(]*))?"
        rf"(?P<word>{phrases})(?P<owner>['’]s?(?!\w))?(?![\w-])"
    )
    swapped, count = pattern.subn(lambda match: _other(match, entries), text)
    return swapped if count and swapped != text else None


def _as_written(phrase: str) -> str:
    first, rest = re.escape(phrase[0]), re.escape(phrase[1:])
    if phrase == phrase.lower():
        return f"(?i:{first}{rest})"
    return f"(?i:{first}){rest}" if phrase[0].islower() else first + rest


def _other(match: re.Match[str], entries: Mapping[str, GroupWord]) -> str:
    word, text = match["word"], match.string
    entry = entries.get(word) or entries[word.lower()]
    other = entry.swap
    if word.lower() in _BEFORE_NOUN and _takes_noun(text[match.end() :]):
        other = _BEFORE_NOUN[word.lower()]
    if word.isupper() and len(word) > 1 and not entry.word.isupper():
        other = other.upper()
    elif word[0].isupper() and (
        entry.word[0].islower() or begins_sentence(text, match.start("word"))
    ):
        other = other[0].upper() + other[1:]
    return _article_for(other, match) + other + _owner_for(other, match)


def _article_for(other: str, match: re.Match[str]) -> str:
    """Return the article before a word, if there is one, and what stands between them."""
    found = match["article"]
    if not found:
        return ""
    wanted = article(other) or found.lower()
    if found[0].isupper():
        wanted = wanted.upper() if match["word"].isupper() else wanted.title()
    return f"{wanted}{match['gap']}"


def _owner_for(other: str, match: re.Match[str]) -> str:
    """Return the ending of a possessive: the women's, the ladies'."""
    found = match["owner"] or ""
    ends_in_s = other.lower().endswith("s")
    if found[1:] and ends_in_s and not other.lower().endswith("ss"):
        return found[0]
    closes_quote = len(_OPENING_QUOTE.findall(match.string[: match.start()])) % 2
    if len(found) == 1 and match["word"].lower().endswith("s") and not ends_in_s:
        return found if closes_quote else found + "s"
    return found


def _takes_noun(rest: str) -> bool:
    """Guess whether the word after a possessive is what is possessed."""
    return bool(_BEFORE_POSSESSED.match(rest)) and not _NO_NOUN.match(rest)
