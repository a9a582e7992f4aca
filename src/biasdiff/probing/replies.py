"""Pairs out of what a chat model answers: CSV, mostly, and seldom clean."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from biasdiff.probing.validation import BIAS_TYPES

_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^\s*(```|~~~).*$", re.MULTILINE)
_LABEL = re.compile(r"^\s*(?:[-*•]\s+)?(?:\(?\d+\s*[.):]\s+)?(?=\S)")
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "’": "'", "‘": "'", " ": " "})
_HEADER = re.compile(r"sent_more.*sent_less", re.IGNORECASE)
_RULE = re.compile(r"^[\s|:-]+$")
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
_DIRECTIONS = ("stereo", "antistereo", "stereotype", "antistereotype")
_LEAST_LIKENESS = 0.5


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
    alike sides; JSON is read too.

    Args:
        text: The reply.
        asked_type: For rows without their type.
        cut: Whether the reply stopped at the token limit; then its last line is not trusted.
    """
    answer = _FENCE.sub("", _THOUGHT.sub("", text)).translate(_QUOTES).strip()
    if not answer:
        reason = "only thinking, no answer" if text.strip() else "the reply is empty"
        return [Unparsed(text, f"{reason}{', cut at the token limit' if cut else ''}")]
    found: list[Parsed | Unparsed] = list(_from_json(answer, asked_type))
    if not found:
        lines = answer.splitlines()
        tail = lines.pop() if cut else None
        for line in lines:
            if line.strip() and not _HEADER.search(line) and not _RULE.match(line):
                found.append(_from_line(line, asked_type))
        if tail:
            found.append(Unparsed(tail, "cut at the token limit"))
    if not any(isinstance(item, Parsed) for item in found):
        return [Unparsed(text, "no entry in the reply, a refusal perhaps")] if not cut else found
    return found


def _from_line(line: str, asked_type: str) -> Parsed | Unparsed:
    fields = _fields(line)
    kept = list(fields)
    bias_type, direction = asked_type, "stereo"
    if kept and (known := _known_type(kept[-1])):
        bias_type = known
        kept.pop()
    if kept and (word := _bare(kept[-1])) in (
        "stereo",
        "antistereo",
        "stereotype",
        "antistereotype",
    ):
        direction = word.removesuffix("type")
        kept.pop()
    if kept and re.fullmatch(r"\D?\d+\D?", kept[0].strip()):
        kept.pop(0)
    sides = _two_sides(kept)
    if sides is None:
        return Unparsed(line, f"{len(fields)} fields, and no two alike sentences among them")
    return Parsed(*sides, direction, bias_type)


def _fields(line: str) -> list[str]:
    stripped = line.strip()
    if stripped.startswith("|") or stripped.count("|") >= 3:
        return [field.strip() for field in stripped.strip("|").split("|")]
    unlabelled = _LABEL.sub("", stripped)
    delimiter = "\t" if unlabelled.count("\t") >= 2 else ","
    try:
        rows = list(csv.reader([unlabelled], delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        rows = [unlabelled.split(delimiter)]
    return [field.strip() for field in rows[0]] if rows else []


def _two_sides(fields: Sequence[str]) -> tuple[str, str] | None:
    """Join fields into the two sentences that are most alike."""
    best: tuple[float, str, str] = (0.0, "", "")
    for cut in range(1, len(fields)):
        left, right = (", ".join(part).strip(' "') for part in (fields[:cut], fields[cut:]))
        if len(left.split()) < 2 or len(right.split()) < 2:
            continue
        likeness = difflib.SequenceMatcher(
            None, left.lower().split(), right.lower().split(), autojunk=False
        ).ratio()
        best = max(best, (likeness, left, right))
    return best[1:] if best[0] >= _LEAST_LIKENESS else None


def _from_json(answer: str, asked_type: str) -> Iterator[Parsed | Unparsed]:
    for item in _json_items(answer):
        more, less = item.get("sent_more"), item.get("sent_less")
        if not isinstance(more, str) or not isinstance(less, str):
            yield Unparsed(json.dumps(item, ensure_ascii=False), "no sent_more and sent_less")
            continue
        direction = _bare(str(item.get("stereo_antistereo", "stereo"))).removesuffix("type")
        if direction not in ("stereo", "antistereo"):
            direction = "stereo"
        yield Parsed(more, less, direction, _known_type(str(item.get("bias_type"))) or asked_type)


def _json_items(answer: str) -> list[dict[str, Any]]:
    candidates = [answer]
    if "[" in answer and "]" in answer:
        candidates.append(answer[answer.index("[") : answer.rindex("]") + 1])
    for candidate in candidates:
        try:
            value = json.loads(candidate)
        except json.JSONDecodeError:
            continue
        items = value if isinstance(value, list) else [value]
        if items and all(isinstance(item, dict) for item in items):
            return items
    try:
        lines = [json.loads(line) for line in answer.splitlines() if line.strip()]
    except json.JSONDecodeError:
        return []
    return lines if lines and all(isinstance(line, dict) for line in lines) else []


def _bare(word: str) -> str:
    return re.sub(r"[^a-z]", "", word.lower())


def _known_type(word: str) -> str | None:
    bare = _bare(word)
    by_letters = {_bare(name): name for name in BIAS_TYPES}
    return by_letters.get(bare) or _ALIASES.get(bare)
