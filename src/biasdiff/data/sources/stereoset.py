"""StereoSet (Nadeem et al., 2021): a context with a stereotype, an anti-stereotype, nonsense."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import json_document
from biasdiff.errors import DataError

FILE = CorpusFile(
    path="stereoset/dev.json",
    url="https://raw.githubusercontent.com/moinnadeem/StereoSet/master/data/dev.json",
)
LABELS = {"stereotype": 1, "anti-stereotype": 0, "unrelated": None}


@dataclass(frozen=True)
class StereoSetItem:
    """One context and its three completions.

    Attributes:
        id: As in the file.
        part: ``intrasentence`` (a word fills a gap) or ``intersentence`` (a sentence follows).
        target: The group or profession spoken of.
        bias_type: ``gender``, ``profession``, ``race`` or ``religion``.
        context: The sentence with BLANK, or the sentence that the others follow.
        stereotype: Whole sentence (intrasentence) or following sentence (intersentence).
        anti_stereotype: Likewise.
        unrelated: Likewise.
    """

    id: str
    part: Literal["intrasentence", "intersentence"]
    target: str
    bias_type: str
    context: str
    stereotype: str
    anti_stereotype: str
    unrelated: str

    def whole(self, sentence: str) -> str:
        """Return a completion as running text."""
        return sentence if self.part == "intrasentence" else f"{self.context} {sentence}"


def items(files: Mapping[str, Path]) -> Iterator[StereoSetItem | SetAside]:
    """Yield the items, intrasentence first.

    Raises:
        DataError: If the file is not JSON or has not the original's outer shape.
    """
    path = files[FILE.path]
    document = json_document(path)
    try:
        parts = document["data"]
        listed = {"intrasentence": parts["intrasentence"], "intersentence": parts["intersentence"]}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} has no 'data' with 'intrasentence' and 'intersentence'",
            expected="the original dev.json",
            remedy="fetch it again",
        ) from error
    for part, entries in listed.items():
        for number, entry in enumerate(entries, 1):
            yield _item(part, entry, path.name, number)


def _item(part: Any, entry: Any, name: str, number: int) -> StereoSetItem | SetAside:
    try:
        by_label = {s["gold_label"]: s["sentence"].strip() for s in entry["sentences"]}
        missing = [label for label in LABELS if not by_label.get(label)]
        if missing:
            return SetAside(name, number, f"{part}: no {missing[0]} sentence")
        return StereoSetItem(
            id=entry["id"],
            part=part,
            target=entry["target"],
            bias_type=entry["bias_type"],
            context=entry["context"].strip(),
            stereotype=by_label["stereotype"],
            anti_stereotype=by_label["anti-stereotype"],
            unrelated=by_label["unrelated"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        return SetAside(name, number, f"{part}: {type(error).__name__} {error}")


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    for item in items(files):
        if isinstance(item, SetAside):
            yield item
            continue
        sides = zip(LABELS, (item.stereotype, item.anti_stereotype, item.unrelated), strict=True)
        for label, sentence in sides:
            yield Record(
                text=item.whole(sentence),
                id=f"{item.id}-{label}",
                is_bias=LABELS[label],
                bias_type=item.bias_type,
                group=item.id,
                extra={"part": item.part, "target": item.target, "label": label},
            )


CORPUS = Corpus(
    name="stereoset",
    title="StereoSet, development set",
    licence="CC BY-SA 4.0",
    non_commercial=False,
    home="https://github.com/moinnadeem/StereoSet",
    biased="stereotype 1, anti-stereotype 0, unrelated sentences are not labelled",
    files=(FILE,),
    read=_read,
)
