"""What a pair must be to serve in a probe, checked one rule at a time.

Rules look at a pair alone (`PAIR_RULES`) or at the whole set (`SET_RULES`). What no rule can see
(whether a stereotype is known, a twin natural, a sentence kind) is for `probe review`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from biasdiff.data.near_duplicates import THRESHOLD, near_duplicates, normalised
from biasdiff.data.probe import ProbePair
from biasdiff.data.stratification import grouped
from biasdiff.data.twins import MASK, bare, difference, without_possessive
from biasdiff.probing.lexicon import Lexicon
from biasdiff.probing.writing import article, begins_sentence

BIAS_TYPES = (
    "age",
    "disability",
    "gender",
    "nationality",
    "physical-appearance",
    "race-color",
    "religion",
    "sexual-orientation",
    "socioeconomic",
)
MIN_WORDS, MAX_WORDS = 5, 40
MAX_EDIT, MAX_EDIT_SHARE = 6, 0.5
MAX_PAIRS_OF_A_FRAME, FRAME_WORDS = 10, 4
_AGREEMENT = (
    "a an the his her hers him he she they them their theirs himself herself themselves "
    "is are was were has have does do mr mrs ms miss sir madam of who"
)
_HARSH = (
    "kill kills killed killer murder murdered murderer rape raped rapist stab stabbed bomb bombs "
    "bomber terrorist terrorists terrorism massacre lynch lynched behead torture tortured "
    "slaughter vermin subhuman"
)
AGREEMENT = frozenset(_AGREEMENT.split())
"""Words that change along with a group word."""
HARSH = frozenset(_HARSH.split())
_GENDERED = frozenset(["he", "she", "his", "her", "hers", "him", "himself", "herself"])
_CONTRACTED = re.compile(r"['’](?:s|ll|d|re|ve)$")
_SLURS = Path(__file__).with_name("slurs.sha256")


@dataclass(frozen=True)
class Failure:
    """One pair that breaks one rule.

    Attributes:
        row: Row number of the pair, from 0.
        id: Its id, empty if it has none.
        rule: Name of the rule.
        reason: What is wrong.
    """

    row: int
    id: str
    rule: str
    reason: str


PairRule = Callable[[ProbePair, Lexicon], Iterator[str]]
SetRule = Callable[[Sequence[ProbePair]], Iterator[tuple[ProbePair, str]]]


def validate(
    pairs: Sequence[ProbePair],
    lexicon: Lexicon,
    *,
    benchmarks: Mapping[str, Sequence[str]] | None = None,
) -> list[Failure]:
    """Check every pair against every rule.

    Args:
        pairs: The probe set.
        lexicon: Group words that may differ.
        benchmarks: Sentences by benchmark of which no pair may be a near repeat.

    Returns:
        Failures in the order of the rows.
    """
    found = [
        (pair, rule, reason)
        for pair in pairs
        for rule, check in PAIR_RULES.items()
        for reason in check(pair, lexicon)
    ]
    for rule, check_set in SET_RULES.items():
        found += [(pair, rule, reason) for pair, reason in check_set(pairs)]
    for name, sentences in (benchmarks or {}).items():
        found += [(pair, "benchmark", r) for pair, r in _repeats_of(pairs, name, sentences)]
    failures = [Failure(p.row, p.extra.get("id", ""), rule, reason) for p, rule, reason in found]
    return sorted(failures, key=lambda failure: failure.row)


def _sides(pair: ProbePair) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("sent_more", pair.sent_more), ("sent_less", pair.sent_less)


def _type(pair: ProbePair, _: Lexicon) -> Iterator[str]:
    if pair.bias_type not in BIAS_TYPES:
        yield f"{pair.bias_type!r} is none of {', '.join(BIAS_TYPES)}"


def _two_sides(pair: ProbePair, _: Lexicon) -> Iterator[str]:
    if not pair.sent_less.strip():
        yield "there is no sent_less"
    elif normalised(pair.sent_more) == normalised(pair.sent_less):
        yield "both sides say the same"


def _length(pair: ProbePair, _: Lexicon) -> Iterator[str]:
    for side, text in _sides(pair):
        words = len(text.split())
        if words and not MIN_WORDS <= words <= MAX_WORDS:
            yield f"{side} has {words} words, not {MIN_WORDS} to {MAX_WORDS}"


def _edit(pair: ProbePair, _: Lexicon) -> Iterator[str]:
    if not pair.sent_less.strip():
        return
    found = difference(pair)
    changed = max(len(found.more), len(found.less))
    words = len(pair.sent_more.split())
    if changed > MAX_EDIT or changed > MAX_EDIT_SHARE * words:
        yield f"{changed} of {words} words differ"


def _group_words(pair: ProbePair, lexicon: Lexicon) -> Iterator[str]:
    """Allow differences in group words, what agrees with them, and numbers (ages, for ``age``)."""
    if not pair.sent_less.strip():
        return
    found = difference(pair)
    named = False
    for word in (*found.more, *found.less):
        plain = without_possessive(word)
        if any(map(str.isdigit, word)):
            named = named or pair.bias_type == "age"
        elif any(
            all(lexicon.knows(part, pair.bias_type) for part in parts)
            for parts in ([word], [plain], plain.split("-"))
        ):
            named = True
        elif _CONTRACTED.sub("", plain) not in AGREEMENT:
            yield f"{word!r} differs but is no group word of {pair.bias_type!r} in the lexicon"
    differing = {_CONTRACTED.sub("", word) for word in (*found.more, *found.less)}
    gendered = pair.bias_type == "gender" and _GENDERED & differing
    if not named and not gendered:
        yield f"no group word of {pair.bias_type!r} differs"


_ARTICLE = re.compile(r"(?<![\w'’-])(an?|An?|AN)\s+[\"'“‘(]*(\w[\w'’-]*)")
_WORD_TWICE = re.compile(r"\b(\w+) \1\b", re.I)
_MAY_STAND_TWICE = {"had", "that", "her", "so", "very", "no", "bye", "ha", "old"}
_END = re.compile(r"[.?!…][\"'”’)]*$")


def _form(pair: ProbePair, _: Lexicon) -> Iterator[str]:
    """Catch slips of writing: articles, doubled words, quotation marks, the end of the sentence."""
    for side, text in _sides(pair):
        if not text.strip():
            continue
        for found in _ARTICLE.finditer(text):
            if found[1][0].isupper() and not begins_sentence(text, found.start()):
                continue  # the letter A
            if article(found[2]) not in (None, found[1].lower()):
                yield f"{side}: {found[1]!r} before {found[2]!r}"
        for twice in _WORD_TWICE.finditer(text):
            if twice[1].lower() not in _MAY_STAND_TWICE:
                yield f"{side}: {twice[1]!r} stands twice"
        if text.count('"') % 2:
            yield f"{side}: a quotation mark is not closed"
        if not _END.search(text):
            yield f"{side}: no full stop, question or exclamation mark at the end"
        first = text.lstrip("\"'“‘(")[:1]
        if first.isalpha() and not first.isupper():
            yield f"{side}: no capital at the beginning"
        if text != " ".join(text.split()):
            yield f"{side}: needless spaces"


def _mild(pair: ProbePair, _: Lexicon) -> Iterator[str]:
    """Refuse slurs (known by their hashes, so that none is written here) and words of violence."""
    slurs = set(_SLURS.read_text(encoding="utf-8").split())
    for side, text in _sides(pair):
        for word in dict.fromkeys(_plain_words(text)):
            if word in HARSH:
                yield f"{side}: {word!r} is a word of violence"
            elif hashlib.sha256(word.encode()).hexdigest()[:16] in slurs:
                yield f"{side}: a slur"


def _plain_words(text: str) -> Iterator[str]:
    """Yield each word, and the parts of those with hyphens, without a possessive."""
    for word in text.split():
        plain = without_possessive(bare(word))
        yield plain
        yield from (without_possessive(bare(part)) for part in plain.split("-"))


PAIR_RULES: dict[str, PairRule] = {
    "type": _type,
    "sides": _two_sides,
    "length": _length,
    "edit": _edit,
    "group word": _group_words,
    "form": _form,
    "mild": _mild,
}


def _unique(pairs: Sequence[ProbePair]) -> Iterator[tuple[ProbePair, str]]:
    first: dict[str, ProbePair] = {}
    ids: dict[str, ProbePair] = {}
    for pair in pairs:
        texts = dict.fromkeys((normalised(pair.sent_more), normalised(pair.sent_less)))
        for text in filter(None, texts):
            if first.setdefault(text, pair) is not pair:
                yield pair, f"a sentence of row {first[text].row} again"
        name = pair.extra.get("id", "")
        if name and ids.setdefault(name, pair) is not pair:
            yield pair, f"the id of row {ids[name].row} again"


def _near(pairs: Sequence[ProbePair]) -> Iterator[tuple[ProbePair, str]]:
    """Compare sentences with the group words masked, and as they are."""
    seen: set[tuple[int, int]] = set()
    for texts in (_masked(pairs), [p.sent_more for p in pairs], [p.sent_less for p in pairs]):
        for match in near_duplicates(texts):
            if (match.index, match.other) not in seen:
                seen.add((match.index, match.other))
                other = pairs[match.other]
                yield pairs[match.index], f"nearly row {other.row} ({match.jaccard:.2f})"


def _claim(pairs: Sequence[ProbePair]) -> Iterator[tuple[ProbePair, str]]:
    """Pairs of one stereotype must differ in their group words, not in their wording alone."""
    named = [pair for pair in pairs if pair.stereotype_id]
    for members in grouped(named, lambda p: p.stereotype_id).values():
        first: dict[tuple[tuple[str, ...], tuple[str, ...]], ProbePair] = {}
        for pair in members:
            found = difference(pair)
            words = (found.more, found.less)
            if first.setdefault(words, pair) is not pair:
                yield pair, f"the group words of row {first[words].row}, which has the same claim"
            if pair.bias_type != members[0].bias_type:
                yield pair, f"the stereotype of row {members[0].row} under another type"


def _frame(pairs: Sequence[ProbePair]) -> Iterator[tuple[ProbePair, str]]:
    """No beginning or end of four words (group words masked) may serve more than ten pairs."""
    for what, cut in (("begin", slice(None, FRAME_WORDS)), ("end", slice(-FRAME_WORDS, None))):
        served: Counter[tuple[str, ...]] = Counter()
        for pair in pairs:
            frame = difference(pair).masked[cut]
            if len(frame) == FRAME_WORDS:
                served[frame] += 1
                if served[frame] > MAX_PAIRS_OF_A_FRAME:
                    yield pair, f"{what}s like {MAX_PAIRS_OF_A_FRAME} pairs: {' '.join(frame)!r}"


SET_RULES: dict[str, SetRule] = {
    "unique": _unique,
    "near-duplicate": _near,
    "claim": _claim,
    "frame": _frame,
}


def _masked(pairs: Sequence[ProbePair]) -> list[str]:
    return [
        " ".join(w if w != MASK else "groupword" for w in difference(p).masked)
        if p.sent_less.strip()
        else p.sent_more
        for p in pairs
    ]


def _repeats_of(
    pairs: Sequence[ProbePair], name: str, sentences: Sequence[str]
) -> Iterator[tuple[ProbePair, str]]:
    for side in ("sent_more", "sent_less"):
        texts = [getattr(pair, side) for pair in pairs]
        worst: dict[int, float] = {}
        for match in near_duplicates(texts, sentences, threshold=THRESHOLD):
            worst[match.index] = max(worst.get(match.index, 0), match.jaccard)
        for index, jaccard in worst.items():
            yield pairs[index], f"{side} is nearly a sentence of {name} ({jaccard:.2f})"
