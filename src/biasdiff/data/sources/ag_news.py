"""AG News (Zhang et al., 2015): headline and first paragraph of news articles."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import table_rows

_HOME = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv"
FILES = (
    CorpusFile(
        "ag_news/test.csv",
        f"{_HOME}/test.csv",
    ),
    CorpusFile("ag_news/train.csv", f"{_HOME}/train.csv", needed=False),
)
TOPICS = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}
_NUMERIC = re.compile(r" ?#(\d{2,5});")
_NAMED = re.compile(r" ?(?<!&)\b(quot|amp|lt|gt|hellip|nbsp);")
_WINDOWS = range(128, 160)
_BLOCK = re.compile(r"</?(?:p|br|div|li|ul|table|tr|td|img)\b[^<>]*>", re.IGNORECASE)
_INLINE = re.compile(r"</?[A-Za-z][^<>]*>")


def clean(text: str) -> str:
    """Mend entities that lost their ampersand (`` #39;``), line breaks and HTML tags."""
    text = _NUMERIC.sub(lambda match: _character(int(match[1])), text.replace("\\", " "))
    text = _NAMED.sub(lambda match: html.unescape(f"&{match[1]};"), text)
    return " ".join(_INLINE.sub("", _BLOCK.sub(" ", html.unescape(text))).split())


def _character(code: int) -> str:
    if code in _WINDOWS:
        return bytes([code]).decode("cp1252", errors="replace")
    return chr(code)


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    for path in files.values():
        rows = table_rows(path, ("class", "title", "description"), header=_COLUMNS)
        for line, row in rows:
            if isinstance(row, SetAside):
                yield row
                continue
            if row["class"] not in TOPICS:
                yield SetAside(path.name, line, f"'class' is {row['class']!r}")
                continue
            yield Record(
                text=f"{clean(row['title'])} {clean(row['description'])}",
                id=f"{path.stem}-{line}",
                is_bias=0,
                group=f"{path.stem}-{line}",
                extra={"topic": TOPICS[row["class"]]},
            )


_COLUMNS = ("class", "title", "description")

CORPUS = Corpus(
    name="ag_news",
    title="AG News",
    licence="research and other non-commercial use (readme.txt of the corpus)",
    non_commercial=True,
    home="http://groups.di.unipi.it/~gulli/AG_corpus_of_news_articles.html",
    biased="every text 0",
    files=FILES,
    read=_read,
)
