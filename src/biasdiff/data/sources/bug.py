"""BUG, gold set (Levy et al., 2021): stereotypical and other sentences about professions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.detokenizing import detokenize
from biasdiff.data.sources.rows import table_rows

FILE = CorpusFile(
    path="bug/gold_BUG.csv",
    url="https://raw.githubusercontent.com/SLAB-NLP/BUG/main/gold_BUG.zip",
    member="gold_BUG.csv",
)
_STEREO, _NEUTRAL, _ANTI = "1", "0", "-1"


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    path = files[FILE.path]
    for line, row in table_rows(path, ("uid", "sentence_text", "stereotype")):
        if isinstance(row, SetAside):
            yield row
            continue
        label = row["stereotype"]
        if label not in (_STEREO, _NEUTRAL, _ANTI):
            yield SetAside(path.name, line, f"'stereotype' is {label!r}")
            continue
        yield Record(
            text=detokenize(row["sentence_text"]),
            id=row["uid"],
            is_bias={_STEREO: 1, _NEUTRAL: 0}.get(label),
            bias_type="gender",
            group=row["uid"],
            direction={_STEREO: "stereo", _ANTI: "antistereo"}.get(label),  # type: ignore[arg-type]
            extra={"profession": row.get("profession", ""), "domain": row.get("corpus", "")},
        )


CORPUS = Corpus(
    name="bug",
    title="BUG, gold set",
    licence="MIT",
    non_commercial=False,
    home="https://github.com/SLAB-NLP/BUG",
    biased="stereotype 1 counts as 1, 0 as 0; -1 (anti-stereotypical) is not labelled",
    files=(FILE,),
    read=_read,
)
