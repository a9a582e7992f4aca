"""Winogender schemas (Rudinger et al., 2018): one sentence in three genders of the pronoun."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import table_rows
from biasdiff.errors import DataError

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


def percent_women(path: Path) -> dict[str, float]:
    """Return the percentage of women in each occupation, by the US Bureau of Labor Statistics.

    Args:
        path: The file of `STATISTICS`, whose column ``bls_pct_female`` is read.

    Raises:
        DataError: If a row is no percentage.
    """
    found = {}
    columns = ("occupation", "bls_pct_female")
    for line, row in table_rows(path, columns, delimiter="\t", quoted=False):
        try:
            if isinstance(row, SetAside):
                raise ValueError(row.reason)
            share = float(row["bls_pct_female"])
            if not 0 <= share <= 100:
                raise ValueError(f"'bls_pct_female' is {row['bls_pct_female']!r}")
        except ValueError as error:
            raise DataError(
                f"{path} line {line}: {error}",
                expected="an occupation and a percentage from 0 to 100",
                remedy="fetch the file again",
            ) from error
        found[row["occupation"]] = share
    return found


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
