"""Hate speech and offensive language (Davidson et al., 2017): tweets in three classes."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from pathlib import Path

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import table_rows

FILE = CorpusFile(
    path="hatespeech/labeled_data.csv",
    url="https://raw.githubusercontent.com/t-davidson/hate-speech-and-offensive-language/master/data/labeled_data.csv",
)
CLASSES = {"0": ("hate", 1), "1": ("offensive", 1), "2": ("neither", 0)}


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    path = files[FILE.path]
    for line, row in table_rows(path, ("", "class", "tweet")):
        if isinstance(row, SetAside):
            yield row
            continue
        if row["class"] not in CLASSES:
            yield SetAside(path.name, line, f"'class' is {row['class']!r}")
            continue
        label, truth = CLASSES[row["class"]]
        yield Record(
            text=" ".join(html.unescape(row["tweet"]).split()),
            id=row[""],
            is_bias=truth,
            group=row[""],
            extra={"class": label},
        )


CORPUS = Corpus(
    name="hatespeech",
    title="Hate Speech and Offensive Language",
    licence="MIT",
    non_commercial=False,
    home="https://github.com/t-davidson/hate-speech-and-offensive-language",
    biased="hate and offensive 1, neither 0",
    files=(FILE,),
    read=_read,
)
