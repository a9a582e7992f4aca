"""Winogender schemas (Rudinger et al., 2018): one sentence in three genders of the pronoun."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import table_rows

_HOME = "https://raw.githubusercontent.com/rudinger/winogender-schemas/master/data"
SENTENCES = CorpusFile(
    "winogender/all_sentences.tsv",
    f"{_HOME}/all_sentences.tsv",
)
STATISTICS = CorpusFile(
    "winogender/occupations-stats.tsv",
    f"{_HOME}/occupations-stats.tsv",
    needed=False,
)


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    path = files[SENTENCES.path]
    for line, row in table_rows(path, ("sentid", "sentence"), delimiter="\t", quoted=False):
        if isinstance(row, SetAside):
            yield row
            continue
        name = row["sentid"].removesuffix(".txt")
        parts = name.split(".")
        if len(parts) != 4:
            yield SetAside(path.name, line, f"'sentid' is {row['sentid']!r}")
            continue
        occupation, participant, answer, gender = parts
        yield Record(
            text=row["sentence"].strip(),
            id=name,
            bias_type="gender",
            group=".".join(parts[:3]),
            extra={
                "occupation": occupation,
                "participant": participant,
                "answer": "participant" if answer == "1" else "occupation",
                "gender": gender,
            },
        )


CORPUS = Corpus(
    name="winogender",
    title="Winogender schemas",
    licence="MIT",
    non_commercial=False,
    home="https://github.com/rudinger/winogender-schemas",
    biased="not labelled",
    files=(SENTENCES, STATISTICS),
    read=_read,
)
