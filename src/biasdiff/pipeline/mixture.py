"""The data stage of a run: the shipped mixture written as files like any user's."""

from __future__ import annotations

import json
from pathlib import Path

from biasdiff.config import SHIPPED, Config
from biasdiff.data.probe import save_probe_pairs
from biasdiff.data.shipped_mixture import ShippedMixture, shipped_mixture
from biasdiff.data.shipped_sets import FACTS_FILE, PAIRS_FILE
from biasdiff.pipeline.artifacts import Artifact, file_fingerprint

FILES = {
    "train": "train.jsonl",
    "probe": "probe.csv",
    "pairs": "evaluation_pairs.csv",
    "texts": "held_out.jsonl",
}


def mixture_of(config: Config) -> ShippedMixture:
    """Draw the shipped mixture in the sizes of the config."""
    data = config.data
    return shipped_mixture(
        size=data.size,
        biased_share=data.biased_share,
        probe_pairs=data.probe_pairs,
        evaluation_pairs=data.evaluation_pairs,
        held_out_texts=data.held_out_texts,
        seed=config.seed,
        one_sided=data.one_sided,
    )


def plan_data(out: Path, *, config: Config) -> Artifact:
    """Describe the writing of the shipped mixture without doing it."""
    data = config.data.model_dump(mode="json", include={*FILES, *_SIZES})
    inputs = {"pairs": file_fingerprint(PAIRS_FILE), "facts": file_fingerprint(FACTS_FILE)}
    return Artifact(
        "data",
        out,
        {"data": data, "seed": config.seed},
        inputs,
        lambda folder: write_mixture(mixture_of(config), folder),
    )


def write_mixture(mixture: ShippedMixture, folder: Path) -> None:
    """Write the four draws as `FILES` into a folder."""
    records: list[dict[str, object]] = [
        {"id": e.id, "text": e.text, "is_bias": e.is_bias, "bias_type": e.bias_type}
        for e in mixture.train
    ]
    _write_lines(folder / FILES["train"], records)
    save_probe_pairs(mixture.probe, folder / FILES["probe"])
    save_probe_pairs(mixture.pairs, folder / FILES["pairs"])
    _write_lines(folder / FILES["texts"], [dict(vars(fact)) for fact in mixture.held_out])


def data_file(role: str, folder: Path, config: Config) -> str:
    """Return the file that plays a role in a run: the user's own, or the data stage's."""
    named: str = getattr(config.data, role)
    return str(folder / FILES[role]) if named == SHIPPED else named


def _write_lines(path: Path, records: list[dict[str, object]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


_SIZES = ("size", "biased_share", "probe_pairs", "evaluation_pairs", "held_out_texts", "one_sided")
