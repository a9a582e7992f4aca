"""BBQ (Parrish et al., 2022): questions on two people, with and without the context to answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import json_lines

CATEGORIES = (
    "Age",
    "Disability_status",
    "Gender_identity",
    "Nationality",
    "Physical_appearance",
    "Race_ethnicity",
    "Race_x_SES",
    "Race_x_gender",
    "Religion",
    "SES",
    "Sexual_orientation",
)
ANSWERS = ("ans0", "ans1", "ans2")
Condition = Literal["ambiguous", "disambiguated"]
_CONDITIONS: dict[str, Condition] = {"ambig": "ambiguous", "disambig": "disambiguated"}
_HOME = "https://raw.githubusercontent.com/nyu-mll/BBQ/main/data"
_UNKNOWN = "unknown"
_CROSSED = re.compile(r"^(?:(?:low|high)ses[-_])?(?:[mf][-_])?(?=.)", re.IGNORECASE)
_SAME = {
    **dict.fromkeys(("man", "men", "boy", "boys", "male"), "m"),
    **dict.fromkeys(("woman", "women", "girl", "girls", "female"), "f"),
    **dict.fromkeys(("transgenderwomen", "transgendermen", "transgender"), "trans"),
    "latina": "latino",
}


@dataclass(frozen=True)
class BbqItem:
    """One question.

    Attributes:
        id: ``Age-0``, unique over the categories.
        category: Of the file, ``Age``.
        question_index: The template it is made of.
        negative: Whether the question asks for something bad.
        condition: ``ambiguous`` where the context does not tell the answer.
        context: What happened.
        question: About one of two people.
        answers: Three.
        label: Number of the right answer.
        unknown: Number of the answer that it cannot be known.
        target: Number of the answer that names the stereotyped group; None where the file does not
            tell the two people apart.
    """

    id: str
    category: str
    question_index: str
    negative: bool
    condition: Condition
    context: str
    question: str
    answers: tuple[str, str, str]
    label: int
    unknown: int
    target: int | None

    @property
    def stereotyped(self) -> int | None:
        """Number of the answer that the stereotype suggests; None where it cannot be told.

        The stereotyped group's in a negative question, the other person's in another.
        """
        if self.target is None or self.negative:
            return self.target
        return next(i for i in range(3) if i not in (self.unknown, self.target))

    @property
    def template(self) -> str:
        """The category and the template, which all its variations share."""
        return f"{self.category}-{self.question_index}"


def items(files: Mapping[str, Path]) -> Iterator[BbqItem | SetAside]:
    """Yield the questions in the files' order."""
    for path in files.values():
        for line, row in json_lines(path):
            if isinstance(row, SetAside):
                yield row
                continue
            item = _item(row)
            yield SetAside(path.name, line, item) if isinstance(item, str) else item


def _item(row: dict[str, Any]) -> BbqItem | str:
    try:
        info = [row["answer_info"][name] for name in ANSWERS]
        groups = row["additional_metadata"]["stereotyped_groups"]
        texts = {name: row[name].strip() for name in ("context", "question", *ANSWERS)}
        polarity, condition, label = (
            row["question_polarity"],
            row["context_condition"],
            row["label"],
        )
        category, number = row["category"], row["example_id"]
        index = str(row["question_index"])
        unknown = [i for i, parts in enumerate(info) if parts[-1].strip().lower() == _UNKNOWN]
        answers = [texts[name] for name in ANSWERS]
        named = [_groups_of(parts, answer) for parts, answer in zip(info, answers, strict=True)]
        wanted = _stereotyped(groups)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        return f"{type(error).__name__} {error}"
    empty = [name for name, text in texts.items() if not text]
    if empty:
        return f"{empty[0]!r} is empty"
    if polarity not in ("neg", "nonneg"):
        return f"'question_polarity' is {polarity!r}"
    if condition not in _CONDITIONS:
        return f"'context_condition' is {condition!r}"
    if label not in (0, 1, 2):
        return f"'label' is {label!r}"
    if len(unknown) != 1:
        return f"{len(unknown)} answers are 'unknown'"
    if (condition == "ambig") != (label == unknown[0]):
        return f"'label' is {label} in a context that is {condition!r}"
    hit = [i for i, names in enumerate(named) if i != unknown[0] and names & wanted]
    return BbqItem(
        id=f"{category}-{number}",
        category=category,
        question_index=index,
        negative=polarity == "neg",
        condition=_CONDITIONS[condition],
        context=texts["context"],
        question=texts["question"],
        answers=(answers[0], answers[1], answers[2]),
        label=label,
        unknown=unknown[0],
        target=hit[0] if len(hit) == 1 else None,
    )


def _normalised(name: str) -> str:
    bare = re.sub(r"[^a-z0-9]", "", name.lower())
    return _SAME.get(bare, bare)


def _groups_of(info: Iterable[str], answer: str) -> set[str]:
    """Return the names of an answer's group as `_stereotyped` spells them.

    The file gives a word and a group: ``["Malian", "Africa"]``, ``["DeShawn Jackson", "M-Black"]``,
    ``["Maria", "trans_F"]``. Crossed groups count as their race, gender and group apart as both;
    where both fields are empty, the words of the answer stand for them.
    """
    given = [part for part in info if part.strip()] or answer.split()
    names: set[str] = set()
    for part in given:
        names |= {_normalised(part), _normalised(_CROSSED.sub("", part))}
        names |= {_normalised(piece) for piece in part.split("_")}
    return names - {""}


def _stereotyped(groups: Any) -> set[str]:
    if not isinstance(groups, list):
        raise TypeError(f"'stereotyped_groups' is {groups!r}")
    return {_normalised(group) for group in groups} - {""}


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    for item in items(files):
        if isinstance(item, SetAside):
            yield item
            continue
        stereotyped = item.stereotyped
        yield Record(
            text=f"{item.context} {item.question}",
            id=item.id,
            bias_type=item.category,
            group=item.template,
            extra={
                "condition": item.condition,
                "polarity": "negative" if item.negative else "non-negative",
                "answer": item.answers[item.label],
                "stereotyped": "" if stereotyped is None else item.answers[stereotyped],
            },
        )


CORPUS = Corpus(
    name="bbq",
    title="BBQ",
    licence="CC BY 4.0",
    non_commercial=False,
    home="https://github.com/nyu-mll/BBQ",
    biased="not labelled",
    files=tuple(CorpusFile(f"bbq/{name}.jsonl", f"{_HOME}/{name}.jsonl") for name in CATEGORIES),
    read=_read,
)
