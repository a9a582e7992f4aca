"""T-REx as LAMA ships it (Elsahar, 2018; Petroni, 2019): facts, and sentences that state them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import json_lines

_ZIP = "https://dl.fbaipublicfiles.com/LAMA/data.zip"
RELATIONS_FILE = CorpusFile("trex/relations.jsonl", _ZIP, "data/relations.jsonl", needed=False)
_AT_HAND = [
    "P19",
    "P20",
    "P27",
    "P31",
    "P39",
    "P101",
    "P103",
    "P106",
    "P108",
    "P127",
    "P136",
    "P138",
    "P140",
    "P159",
    "P176",
    "P178",
    "P264",
    "P364",
    "P407",
    "P413",
    "P449",
    "P463",
    "P495",
    "P527",
    "P740",
    "P937",
    "P1303",
    "P1412",
]
_OTHERS = [
    "P17",
    "P30",
    "P36",
    "P37",
    "P47",
    "P131",
    "P190",
    "P276",
    "P279",
    "P361",
    "P530",
    "P1001",
    "P1376",
]
MASK = "[MASK]"


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    labels = _labels(files.get(RELATIONS_FILE.path))
    seen: set[str] = set()
    for name, path in files.items():
        if name == RELATIONS_FILE.path:
            continue
        for line, fact in json_lines(path):
            if isinstance(fact, SetAside):
                yield fact
                continue
            try:
                yield from _sentences(fact, labels, seen)
            except (KeyError, TypeError) as error:
                yield SetAside(path.name, line, f"{type(error).__name__} {error}")


def _sentences(
    fact: Mapping[str, object], labels: Mapping[str, str], seen: set[str]
) -> Iterator[Record]:
    evidences = fact["evidences"]
    if not isinstance(evidences, list):
        raise TypeError("'evidences' is no list")
    predicate = str(fact["predicate_id"])
    for evidence in evidences:
        masked = " ".join(evidence["masked_sentence"].split())
        if masked in seen or MASK not in masked:
            continue
        seen.add(masked)
        yield Record(
            text=masked.replace(MASK, evidence["obj_surface"]),
            id=f"trex-{len(seen)}",
            is_bias=0,
            group=str(fact["uuid"]),
            extra={
                "relation": labels.get(predicate, predicate),
                "predicate": predicate,
                "subject": evidence["sub_surface"],
                "object": evidence["obj_surface"],
                "object_label": str(fact["obj_label"]),
                "masked_sentence": masked,
            },
        )


def _labels(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line)
    return {row["relation"]: row["label"] for row in rows}


CORPUS = Corpus(
    name="trex",
    title="T-REx (LAMA)",
    licence="CC BY-NC 4.0, as LAMA ships it",
    non_commercial=True,
    home="https://github.com/facebookresearch/LAMA",
    biased="every text 0",
    files=(
        RELATIONS_FILE,
        *(
            CorpusFile(f"trex/TREx/{name}.jsonl", _ZIP, f"data/TREx/{name}.jsonl", name in _AT_HAND)
            for name in (*_AT_HAND, *_OTHERS)
        ),
    ),
    read=_read,
)
