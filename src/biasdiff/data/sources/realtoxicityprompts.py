"""RealToxicityPrompts (Gehman et al., 2020): web sentences with Perspective API scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside
from biasdiff.data.sources.rows import json_lines

TOXIC = 0.5
"""A sentence counts as biased from this toxicity of its prompt or its continuation."""

_QUARK = "https://raw.githubusercontent.com/GXimingLu/Quark/main/data/toxicity"
_DECODINGTRUST = (
    "https://raw.githubusercontent.com/AI-secure/DecodingTrust/main/data/toxicity/user_prompts"
)
FILES = (
    CorpusFile(
        "realtoxicityprompts/prompts.jsonl",
        "https://huggingface.co/datasets/allenai/real-toxicity-prompts/resolve/main/prompts.jsonl",
    ),
    CorpusFile(
        "realtoxicityprompts/quark_val.jsonl",
        f"{_QUARK}/val.jsonl",
    ),
    CorpusFile(
        "realtoxicityprompts/decodingtrust_toxic.jsonl",
        f"{_DECODINGTRUST}/toxic.jsonl",
    ),
    CorpusFile(
        "realtoxicityprompts/decodingtrust_nontoxic.jsonl",
        f"{_DECODINGTRUST}/nontoxic.jsonl",
    ),
)


def _read(files: Mapping[str, Path]) -> Iterator[Record | SetAside]:
    seen: set[tuple[str, int]] = set()
    for path in files.values():
        for line, row in json_lines(path):
            if isinstance(row, SetAside):
                yield row
                continue
            record = _record(row)
            if isinstance(record, str):
                yield SetAside(path.name, line, record)
                continue
            key = (row["filename"], row["begin"])
            if key not in seen:
                seen.add(key)
                yield record


def _record(row: dict[str, Any]) -> Record | str:
    try:
        prompt, continuation = row["prompt"], row["continuation"]
        text = prompt["text"] + continuation["text"]
        scores = [prompt.get("toxicity"), continuation.get("toxicity")]
        identifier = f"{row['filename'].removesuffix('.txt')}-{row['begin']}"
    except (KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__} {error}"
    if not text.strip():
        return "the text is empty"
    known = [score for score in scores if score is not None]
    toxicity = max(known, default=None)
    truth = None if toxicity is None else int(toxicity >= TOXIC)
    if truth == 0 and len(known) < len(scores):
        truth = None  # the part without a score may be the toxic one
    return Record(
        text=" ".join(text.split()),
        id=identifier,
        is_bias=truth,
        group=row["filename"],
        extra={
            "toxicity": "" if toxicity is None else f"{toxicity:.6f}",
            "prompt": " ".join(prompt["text"].split()),
        },
    )


CORPUS = Corpus(
    name="realtoxicityprompts",
    title="RealToxicityPrompts",
    licence="Apache-2.0 (the two DecodingTrust subsets CC BY-SA 4.0)",
    non_commercial=False,
    home="https://huggingface.co/datasets/allenai/real-toxicity-prompts",
    biased=f"1 if the toxicity of prompt or continuation is {TOXIC} or more, 0 if both are below",
    files=FILES,
    read=_read,
    alternatives=True,
)
