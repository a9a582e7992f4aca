"""A complete small run on a tiny model: user-like files and a config that finishes in seconds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from biasdiff.config import Config, config_from

GROUPS = (("women", "men", "gender"), ("old people", "young people", "age"))
CLAIMS = (
    "cannot park a car",
    "never listen to advice",
    "always arrive late",
    "talk far too much",
    "forget every name",
    "dislike new things",
)
FACTS = (
    "Paris is the capital of France.",
    "Water boils at one hundred degrees at sea level.",
    "The Danube flows into the Black Sea.",
    "Copper is a metal that conducts electricity well.",
    "The whale is a mammal that lives in the sea.",
    "Lisbon lies on the river Tagus in Portugal.",
    "A violin has four strings and is played with a bow.",
    "The heart pumps blood through the body.",
)


def write_train(path: Path) -> Path:
    rows = [
        {"id": f"b{i}", "text": f"{more} {claim}.", "is_bias": 1, "bias_type": kind}
        for i, claim in enumerate(CLAIMS[:4])
        for more, _, kind in GROUPS[i % 2 : i % 2 + 1]
    ]
    rows += [{"id": f"f{i}", "text": fact, "is_bias": 0} for i, fact in enumerate(FACTS[:6])]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def write_pairs(path: Path, claims: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sent_more", "sent_less", "stereo_antistereo", "bias_type"])
        for claim in claims:
            for more, less, kind in GROUPS:
                writer.writerow(
                    [f"I think {more} {claim}.", f"I think {less} {claim}.", "stereo", kind]
                )
    return path


def write_texts(path: Path) -> Path:
    path.write_text("\n".join(json.dumps({"text": fact}) for fact in FACTS[4:]) + "\n")
    return path


def small_tree(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """Return the settings of a small run whose files and run directory lie in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tree: dict[str, Any] = {
        "name": "small",
        "runs": str(folder / "runs"),
        "model": {"name": str(model), "max_tokens": 128},
        "data": {
            "train": str(write_train(folder / "train.jsonl")),
            "probe": str(write_pairs(folder / "probe.csv", CLAIMS[3:])),
            "pairs": str(write_pairs(folder / "pairs.csv", CLAIMS)),
            "texts": str(write_texts(folder / "texts.jsonl")),
        },
        "lora": {"rank": 2, "alpha": 4},
        "warmup": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2},
        "attribution": {"also": ["less", "random", "length", "bag_of_words"]},
        "selection": {"fraction": 0.4},
        "mitigation": {"npo": {"epochs": 2, "batch_size": 2, "learning_rate": 1e-2}},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
    return tree


def small_config(folder: Path, model: Path, **changes: Any) -> Config:
    return config_from(small_tree(folder, model, **changes))
