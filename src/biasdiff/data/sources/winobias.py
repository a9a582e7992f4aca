"""WinoBias (Zhao et al., 2018): occupations and pronouns; the format of the paper's Wino."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import text_lines

_HOME = "https://raw.githubusercontent.com/uclanlp/corefBias/master/WinoBias/wino/data"
_NAMES = tuple(
    f"{side}_stereotyped_type{kind}.txt.{split}"
    for kind in (1, 2)
    for split in ("dev", "test")
    for side in ("pro", "anti")
)
_NUMBER = re.compile(r"^(\d+) +(.+)$")


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    for path in files.values():
        truth = int(path.name.startswith("pro"))
        part = path.name.split("stereotyped_")[1].replace(".txt.", "-")
        for line, text in text_lines(path):
            if isinstance(text, SetAside):
                yield text
            elif text.strip():
                match = _NUMBER.match(text.strip())
                if match is None:
                    yield SetAside(path.name, line, "no number before the sentence")
                    continue
                number, sentence = match.groups()
                yield Record(
                    text=" ".join(sentence.replace("[", "").replace("]", "").split()),
                    id=f"{part}-{number}-{'pro' if truth else 'anti'}",
                    is_bias=truth,
                    bias_type="gender",
                    group=f"{part}-{number}",
                    extra={"marked": sentence},
                )


CORPUS = Corpus(
    name="winobias",
    title="WinoBias",
    licence="MIT",
    non_commercial=False,
    home="https://github.com/uclanlp/corefBias",
    biased="pro-stereotyped 1, anti-stereotyped 0",
    files=tuple(CorpusFile(f"winobias/{name}", f"{_HOME}/{name}") for name in _NAMES),
    read=_read,
)
