"""Pairs out of what a chat model answers: CSV, mostly, and seldom clean."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from biasdiff.probing.validation import BIAS_TYPES, MAX_WORDS

_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_UNOPENED = re.compile(r"\A.*</(think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"(```|~~~)([ \t]*\w*[ \t]*$)?", re.MULTILINE)
_LABEL = re.compile(
    r"^(?:[-*•]\s+)?(?:(?:(?:entry|example|pair)\s+)?\(?\d+\s*[.):](?:\s+|(?=[\"“])))?(?=\S)",
    re.IGNORECASE,
)
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "’": "'", "‘": "'"})
_INNER_QUOTE = re.compile(r'(?<!^)(?<!,)(?<!, )(?<!")"(?!")(?!\s*(?:,|$))')
_HEADER = re.compile(r"sent_more\W+sent_less", re.IGNORECASE)
_RULE = re.compile(r"^[\s|:\-\[\]{},]+$")
_JSON_LINE = re.compile(r"^\s*(?:\[?\s*[{}]|[\"“]\w+[\"”]\s*:)")
_THOUSANDS = re.compile(r"(?<=\d), (?=\d{3}\b)")
_ALIASES = {
    "race": "race-color",
    "racecolor": "race-color",
    "raceandcolor": "race-color",
    "ethnicity": "race-color",
    "sexualorientation": "sexual-orientation",
    "orientation": "sexual-orientation",
    "appearance": "physical-appearance",
    "physicalappearance": "physical-appearance",
    "socioeconomicstatus": "socioeconomic",
    "class": "socioeconomic",
}
_DIRECTION = re.compile(r"(anti)?stereo(typ[a-z]*)?")
_LEAST_SPELLING = 0.85
_LEAST_LIKENESS = 0.5
_MOST_WORDS = 4 * MAX_WORDS


@dataclass(frozen=True)
class Parsed:
    """A pair found in a reply.

    Attributes:
        sent_more: As answered, without the quotation marks around it.
        sent_less: Likewise.
        stereo_antistereo: As answered; ``stereo`` where the column is missing.
        bias_type: As answered, in our spelling; the type asked for where the column is missing.
    """

    sent_more: str
    sent_less: str
    stereo_antistereo: str
    bias_type: str


@dataclass(frozen=True)
class Unparsed:
    """A line of a reply, or the whole reply, that gave no pair.

    Attributes:
        text: What was answered.
        reason: Why it gave none.
    """

    text: str
    reason: str


def parse_reply(text: str, *, asked_type: str, cut: bool = False) -> list[Parsed | Unparsed]:
    """Return the pairs of a reply, and what in it gave none.

    Thinking before the answer, code fences, numbering, headers and table rules are passed over;
    commas outside quotation marks are put back into the sentence where that gives the two most
    alike sides; JSON is read too, whole or cut.

    Args:
        text: The reply.
        asked_type: For rows without their type.
        cut: Whether the reply stopped at the token limit; then its last line is not trusted.
    """
    answer = _FENCE.sub("", _UNOPENED.sub("", _THOUGHT.sub("", text)))
    answer = answer.replace("\u00a0", " ").strip()
    if not answer:
        reason = "only thinking, no answer" if text.strip() else "the reply is empty"
        return [Unparsed(text, f"{reason}{', cut at the token limit' if cut else ''}")]
    found = _from_json(answer, asked_type, cut) or _from_lines(answer, asked_type, cut)
    if not cut and not any(isinstance(item, Parsed) for item in found):
        return [Unparsed(text, "no entry in the reply, a refusal perhaps")]
    return found


def _from_lines(answer: str, asked_type: str, cut: bool) -> list[Parsed | Unparsed]:
    lines = answer.splitlines()
    tail = [Unparsed(lines.pop(), "cut at the token limit")] if cut else []
    told = [line for line in lines if not _HEADER.search(line) and not _RULE.match(line)]
    return [*(_from_line(line, asked_type) for line in told if line.strip()), *tail]


def _from_line(line: str, asked_type: str) -> Parsed | Unparsed:
    if _JSON_LINE.match(line):
        return Unparsed(line, "JSON without sent_more and sent_less")
    words = len(line.split())
    if words > _MOST_WORDS:  # a model that repeats itself; comparing would take minutes
        return Unparsed(line, f"{words} words in one line")
    fields = _fields(line)
    kept = [field for field in fields if field]
    bias_type = direction = None
    for _ in range(2):
        if kept and bias_type is None and (known := _known_type(kept[-1])):
            bias_type = known
        elif kept and direction is None and (word := _direction(kept[-1])):
            direction = word
        elif len(kept) > 1 and bias_type is direction is None and _direction(kept[-2]):
            bias_type = kept[-1]
        else:
            break
        kept.pop()
    if kept and re.fullmatch(r"\D?\d+\D?", kept[0]):
        kept.pop(0)
    sides = _two_sides(kept)
    if sides is None:
        return Unparsed(line, f"{len(fields)} fields, and no two alike sentences among them")
    if not _THOUSANDS.search(line):
        sides = _THOUSANDS.sub(",", sides[0]), _THOUSANDS.sub(",", sides[1])
    return Parsed(*sides, direction or "stereo", bias_type or asked_type)


def _fields(line: str) -> list[str]:
    """Split a line; typographic quotation marks around fields count, those inside are left."""
    stripped = line.strip(" \t[],")
    if '"' not in stripped:
        stripped = stripped.translate(_QUOTES)
    if stripped.startswith("|") or stripped.count("|") >= 3:
        fields = stripped.strip("|").split("|")
    else:
        unlabelled = _LABEL.sub("", stripped).replace(r"\"", '""')
        fields = _split(unlabelled, "\t" if unlabelled.count("\t") >= 2 else ",")
    return [_unwrapped(field.translate(_QUOTES).strip()) for field in fields]


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:  # a quotation mark inside a sentence is not doubled, or the last not closed
        mended = _INNER_QUOTE.sub('""', line)
    try:
        return next(csv.reader([mended], delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return line.split(delimiter)


def _unwrapped(text: str) -> str:
    """Take off quotation marks around the whole."""
    inner = text[1:-1]
    wrapped = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return inner.strip() if wrapped and '"' not in inner else text


def _two_sides(fields: Sequence[str]) -> tuple[str, str] | None:
    """Join fields into the two sentences that are most alike."""
    best: tuple[float, str, str] = (0.0, "", "")
    for cut in range(1, len(fields)):
        left, right = (_unwrapped(", ".join(part)) for part in (fields[:cut], fields[cut:]))
        if len(left.split()) < 2 or len(right.split()) < 2:
            continue
        likeness = difflib.SequenceMatcher(
            None, left.lower().split(), right.lower().split(), autojunk=False
        ).ratio()
        best = max(best, (likeness, left, right))
    return best[1:] if best[0] >= _LEAST_LIKENESS else None


def _from_json(answer: str, asked_type: str, cut: bool) -> list[Parsed | Unparsed]:
    """Read the JSON objects of an answer; empty if there are none."""
    items, between = _json_items(answer)
    if not items:
        items, between = _json_items(answer.translate(_QUOTES))
    if not items:
        return []
    found = [_from_item(item, asked_type) for item in items]
    for place, text in enumerate(between):
        if not _RULE.match(text or " "):
            last = cut and place == len(between) - 1
            reason = "cut at the token limit" if last else "JSON without sent_more and sent_less"
            found.append(Unparsed(text.strip(), reason))
    return found


def _from_item(item: dict[str, Any], asked_type: str) -> Parsed | Unparsed:
    written = json.dumps(item, ensure_ascii=False)
    more, less = item.get("sent_more"), item.get("sent_less")
    if not isinstance(more, str) or not isinstance(less, str):
        return Unparsed(written, "JSON without sent_more and sent_less")
    told = str(item.get("stereo_antistereo") or "stereo")
    direction = _direction(told)
    if direction is None:
        return Unparsed(written, f"{told!r} is neither stereo nor antistereo")
    named = str(item.get("bias_type") or asked_type)
    more, less = (text.translate(_QUOTES).strip() for text in (more, less))
    return Parsed(more, less, direction, _known_type(named) or named)


def _json_items(answer: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the objects that hold a sentence, in an array or not, and the texts between them."""
    decoder = json.JSONDecoder(strict=False)
    items: list[dict[str, Any]] = []
    between: list[str] = []
    end, start = 0, answer.find("{")
    while start >= 0:
        try:
            item, after = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            item, after = {}, start
        if "sent_more" in item or "sent_less" in item:
            items.append(item)
            between.append(answer[end:start])
            end = after
        start = answer.find("{", max(end, start + 1))
    return items, [*between, answer[end:]]


def _bare(word: str) -> str:
    return re.sub(r"[^a-z]", "", word.lower())


def _direction(word: str) -> str | None:
    found = _DIRECTION.fullmatch(_bare(word))
    return f"{found[1] or ''}stereo" if found else None


def _known_type(word: str) -> str | None:
    by_letters = {_bare(name): name for name in BIAS_TYPES} | _ALIASES
    near = difflib.get_close_matches(_bare(word), by_letters, n=1, cutoff=_LEAST_SPELLING)
    return by_letters[near[0]] if near else None
