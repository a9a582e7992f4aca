"""WikiText-2 (Merity et al., 2017): paragraphs of Wikipedia articles."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.detokenizing import detokenize
from biasdiff.data.sources.rows import text_lines

_ZIP = "https://wikitext.smerity.com/wikitext-2-v1.zip"
UNKNOWN = "<unk>"
_JOINED = re.compile(r" @([-,.])@ ")


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    for path in files.values():
        split = path.name.split(".")[1]
        article = ""
        for line, text in text_lines(path):
            if isinstance(text, SetAside):
                yield text
                continue
            stripped = text.strip()
            if stripped.startswith("= ") and not stripped.startswith("= ="):
                article = f"{split}-{line}"
            if not stripped or stripped.startswith("=") or UNKNOWN in stripped:
                continue
            yield Record(
                text=detokenize(_JOINED.sub(r"\1", stripped)),
                id=f"{split}-{line}",
                group=article or f"{split}-0",
                extra={"split": split},
            )


CORPUS = Corpus(
    name="wikitext2",
    title="WikiText-2, validation and test",
    licence="CC BY-SA 3.0",
    non_commercial=False,
    home="https://wikitext.smerity.com",
    biased="not labelled; for perplexity. Headings and lines with <unk> are dropped",
    files=tuple(
        CorpusFile(f"wikitext2/wiki.{split}.tokens", _ZIP, f"wikitext-2/wiki.{split}.tokens")
        for split in ("valid", "test")
    ),
    read=_read,
)
