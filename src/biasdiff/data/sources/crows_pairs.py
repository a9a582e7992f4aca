"""CrowS-Pairs (Nangia et al., 2020): pairs of sentences about two groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from biasdiff.data.probe import ProbePair
from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import table_rows

FILE = CorpusFile(
    path="crows_pairs/crows_pairs_anonymized.csv",
    url="https://raw.githubusercontent.com/nyu-mll/crows-pairs/master/data/crows_pairs_anonymized.csv",
)
_NEEDED = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")


def pairs(files: Mapping[str, Path]) -> Iterator[ProbePair | SetAside]:
    """Yield the pairs; the first column, which has no name, becomes ``id``."""
    path = files[FILE.path]
    for row, (line, values) in enumerate(table_rows(path, _NEEDED)):
        if isinstance(values, SetAside):
            yield values
        elif values["stereo_antistereo"] not in ("stereo", "antistereo"):
            found = values["stereo_antistereo"]
            yield SetAside(path.name, line, f"'stereo_antistereo' is {found!r}")
        else:
            yield ProbePair(
                sent_more=values["sent_more"],
                sent_less=values["sent_less"],
                stereo_antistereo=values["stereo_antistereo"],  # type: ignore[arg-type]
                bias_type=values["bias_type"],
                row=row,
                extra={"id": values.get("", str(row)) or str(row)},
            )


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    for pair in pairs(files):
        if isinstance(pair, SetAside):
            yield pair
            continue
        stereo = pair.stereo_antistereo == "stereo"
        for side, text, truth in (("more", pair.sent_more, 1), ("less", pair.sent_less, 0)):
            yield Record(
                text=text,
                id=f"{pair.extra['id']}-{side}",
                is_bias=truth if stereo else None,
                bias_type=pair.bias_type,
                group=pair.extra["id"],
                direction=pair.stereo_antistereo,
            )


CORPUS = Corpus(
    name="crows_pairs",
    title="CrowS-Pairs",
    licence="CC BY-SA 4.0",
    non_commercial=False,
    home="https://github.com/nyu-mll/crows-pairs",
    biased="stereo rows: sent_more 1, sent_less 0; antistereo rows are not labelled",
    files=(FILE,),
    read=_read,
)
