"""A mixture's card: what is in it, under which licences, and how hard it is."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from biasdiff.data.mixtures.build import Mixture
from biasdiff.data.mixtures.guards import STATED

CONTENT = (
    "Some of these sentences state stereotypes or are offensive. They serve to measure and to "
    "reduce bias; none is a statement of fact. Do not train on them a model that you mean to use."
)


def card(mixture: Mixture, data: bytes) -> dict[str, Any]:
    """Return the card as plain data.

    Args:
        mixture: As built.
        data: Bytes of the file it was written to, for the fingerprint.
    """
    rows = mixture.rows
    licences = {
        name: {
            "licence": pool.licence,
            "non_commercial": pool.non_commercial,
            "rows_offered": len(pool.rows),
            "repeated_texts_left_out": pool.repeated,
            "rows_set_aside": pool.set_aside,
        }
        for name, pool in mixture.pools.items()
    }
    return {
        "mixture": mixture.recipe.name,
        "what": mixture.recipe.what,
        "content_warning": CONTENT,
        "size": len(rows),
        "seed": mixture.seed,
        "parts": [vars(part) for part in mixture.recipe.parts],
        "sha256": hashlib.sha256(data).hexdigest(),
        "sources": licences,
        "counts": {
            "biased": sum(row.is_bias for row in rows),
            "other": sum(not row.is_bias for row in rows),
            "by_source": _counted(rows, "source"),
            "by_type": _counted(rows, "bias_type"),
            "stereotypes": len({row.stereotype_id for row in rows if row.stereotype_id}),
        },
        "words": {
            name: _lengths([len(r.text.split()) for r in rows if r.is_bias == truth])
            for name, truth in (("biased", 1), ("other", 0))
        },
        "overlap": {
            "near_duplicate": STATED,
            "disjoint": mixture.disjoint,
            "candidates_dropped_for_a_stereotype_of_the_probe": mixture.shared_stereotypes,
            "checks": [vars(check) for check in mixture.checks],
        },
        "auroc": {
            "bag_of_words": _rounded(mixture.separability.bag_of_words),
            "length": _rounded(mixture.separability.length),
        },
    }


def _counted(rows: list[Any], field: str) -> dict[str, dict[str, int]]:
    counts = Counter((str(getattr(row, field) or "none"), row.is_bias) for row in rows)
    names = sorted({name for name, _ in counts})
    return {name: {"biased": counts[name, 1], "other": counts[name, 0]} for name in names}


def _lengths(lengths: list[int]) -> dict[str, float]:
    if not lengths:
        return {}
    return {
        "mean": round(float(np.mean(lengths)), 2),
        "sd": round(float(np.std(lengths)), 2),
        "min": min(lengths),
        "median": float(np.median(lengths)),
        "max": max(lengths),
    }


def _either_way(auroc: float | None) -> str:
    """Say which length points to the biased class, and how well."""
    if auroc is None:
        return "None"
    kind = "longer" if auroc >= 0.5 else "shorter"
    return f"{max(auroc, 1 - auroc):.3f} ({kind} = biased)"


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 3)


def card_markdown(found: dict[str, Any]) -> str:
    """Return the card for people to read."""
    lines = [
        f"# Mixture `{found['mixture']}`",
        "",
        f"> {found['content_warning']}",
        "",
        f"{found['what'][0].upper()}{found['what'][1:]}. {found['size']} rows, seed "
        f"{found['seed']}, sha256 `{found['sha256']}`.",
        "",
        "## Sources",
        "",
        *_table(
            ("source", "licence", "commercial use", "biased", "other", "offered", "set aside"),
            [
                (
                    name,
                    entry["licence"],
                    "**no**" if entry["non_commercial"] else "see licence",
                    found["counts"]["by_source"].get(name, {}).get("biased", 0),
                    found["counts"]["by_source"].get(name, {}).get("other", 0),
                    entry["rows_offered"],
                    entry["rows_set_aside"],
                )
                for name, entry in found["sources"].items()
            ],
        ),
        "## Bias types",
        "",
        *_table(
            ("type", "biased", "other"),
            [(name, c["biased"], c["other"]) for name, c in found["counts"]["by_type"].items()],
        ),
        "## How hard it is without attribution",
        "",
        "AUROC at telling the classes apart; 0.5 is chance.",
        "",
        *_table(
            ("cue", "AUROC"),
            [
                ("bag of words, cross-validated by group", found["auroc"]["bag_of_words"]),
                ("number of words", _either_way(found["auroc"]["length"])),
            ],
        ),
        *_table(
            ("words in a row", "mean", "sd", "min", "median", "max"),
            [(name, *stats.values()) for name, stats in found["words"].items() if stats],
        ),
        "## Overlap checks",
        "",
        f"Dropped before the draw: candidates equal to a text of the set after normalisation, and "
        f"those with a {found['overlap']['near_duplicate']}. Candidates dropped because they state "
        f"a stereotype of the probe (`--disjoint {found['overlap']['disjoint']}`): "
        f"{found['overlap']['candidates_dropped_for_a_stereotype_of_the_probe']}.",
        "",
        *_table(
            ("set", "texts", "exact", "near", "note"),
            [tuple(check.values()) for check in found["overlap"]["checks"]],
        ),
    ]
    return "\n".join(lines)


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
        "",
    ]


def card_files(out: Path) -> tuple[Path, Path]:
    """Return where the card of a mixture file lies: for programs and for people."""
    return out.with_name(f"{out.stem}.card.json"), out.with_name(f"{out.stem}.card.md")


def write_card(found: dict[str, Any], out: Path) -> None:
    """Write the card beside the mixture file."""
    as_json, as_markdown = card_files(out)
    as_json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    as_markdown.write_text(card_markdown(found), encoding="utf-8")
