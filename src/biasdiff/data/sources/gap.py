"""GAP (Webster et al., 2018): ambiguous pronouns in Wikipedia text, balanced by gender."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import table_rows

_HOME = "https://raw.githubusercontent.com/google-research-datasets/gap-coreference/master"
_NAMES = ("gap-development.tsv", "gap-test.tsv", "gap-validation.tsv")


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    for path in files.values():
        rows = table_rows(path, ("ID", "Text", "Pronoun"), delimiter="\t", quoted=False)
        for _, row in rows:
            if isinstance(row, SetAside):
                yield row
                continue
            yield Record(
                text=row["Text"].strip(),
                id=row["ID"],
                is_bias=0,
                bias_type="gender",
                group=row["ID"],
                extra={"pronoun": row["Pronoun"]},
            )


CORPUS = Corpus(
    name="gap",
    title="GAP",
    licence="Apache-2.0",
    non_commercial=False,
    home="https://github.com/google-research-datasets/gap-coreference",
    biased="every text 0",
    files=tuple(CorpusFile(f"gap/{name}", f"{_HOME}/{name}") for name in _NAMES),
    read=_read,
)
