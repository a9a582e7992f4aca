"""WEAT, SEAT, religion and double-bind tests (Caliskan, 2017; May, 2019; Meade, 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import json_document
from biasdiff.errors import DataError

_HOME = "https://raw.githubusercontent.com/McGill-NLP/bias-bench/main/data/seat"
_DOUBLE_BIND = tuple(
    f"heilman_double_bind_{trait}_{form}"
    for trait in ("competent", "likable")
    for form in ("1", "1-", "1+3-", "one_sentence", "one_word")
)
_WEAT = ("1", "2", "3", "3b", "4", "5", "5b", "6", "6b", "7", "7b", "8", "8b", "9", "10")
_ANGRY = ("angry_black_woman_stereotype", "angry_black_woman_stereotype_b")
WORD_TESTS = (*(f"weat{name}" for name in _WEAT), *_ANGRY, *_DOUBLE_BIND)
SENTENCE_TESTS = (
    *(f"sent-weat{name}" for name in _WEAT),
    *(f"sent-{name}" for name in _ANGRY),
    *(f"sent-religion{name}" for name in ("1", "1b", "2", "2b")),
    *(f"sent-heilman_double_bind_{trait}_one_word" for trait in ("competent", "likable")),
)
ROLES = ("targ1", "targ2", "attr1", "attr2")


@dataclass(frozen=True)
class AssociationTest:
    """One test: are the first targets nearer to the first attributes than the second are?

    Attributes:
        name: ``weat6`` (words) or ``sent-weat6`` (sentences).
        targ1: Examples of the first target category; so the other three.
        categories: Names of the four, in the order of the fields.
    """

    name: str
    targ1: tuple[str, ...]
    targ2: tuple[str, ...]
    attr1: tuple[str, ...]
    attr2: tuple[str, ...]
    categories: tuple[str, str, str, str]


def tests(files: Mapping[str, Path]) -> Iterator[AssociationTest]:
    """Yield the tests; each file is one JSON object over many lines.

    Raises:
        DataError: If a file is not JSON or lacks one of the four sets.
    """
    for path in files.values():
        document = json_document(path)
        try:
            sets = {role: tuple(document[role]["examples"]) for role in ROLES}
            names = tuple(document[role]["category"] for role in ROLES)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path} lacks {error}",
                expected=f"{', '.join(ROLES)}, each with 'category' and 'examples'",
                remedy="fetch it again",
            ) from error
        yield AssociationTest(path.stem, **sets, categories=names)


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    for test in tests(files):
        for role, category in zip(ROLES, test.categories, strict=True):
            for number, text in enumerate(getattr(test, role)):
                yield Record(
                    text=text,
                    id=f"{test.name}-{role}-{number}",
                    group=test.name,
                    extra={"test": test.name, "role": role, "category": category},
                )


CORPUS = Corpus(
    name="seat",
    title="WEAT, SEAT, religion and double-bind tests",
    licence="CC BY-NC 4.0 (the religion tests come with none)",
    non_commercial=True,
    home="https://github.com/W4ngatang/sent-bias, https://github.com/McGill-NLP/bias-bench",
    biased="not labelled",
    files=tuple(
        CorpusFile(f"seat/{name}.jsonl", f"{_HOME}/{quote(name)}.jsonl")
        for name in (*WORD_TESTS, *SENTENCE_TESTS)
    ),
    read=_read,
)
