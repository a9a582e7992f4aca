"""Mixtures written to files with their cards, and corpora described."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from biasdiff.config import load_recipe
from biasdiff.data.files import write_rows
from biasdiff.data.mixtures.build import Disjoint, build_mixture
from biasdiff.data.mixtures.card import card, write_card
from biasdiff.data.mixtures.recipes import Part, Recipe, recipe_named
from biasdiff.data.probe import load_probe_pairs
from biasdiff.data.sources.finding import find, find_files, read_corpus
from biasdiff.data.sources.registry import corpus_named

DEFAULT_SIZE = 3000


def build_to_file(
    mixture: str,
    out: Path,
    *,
    size: int | None = None,
    seed: int | None = None,
    biased_share: float | None = None,
    equal_types: bool = False,
    disjoint: Disjoint = "stereotype",
    probe: Path | None = None,
) -> dict[str, Any]:
    """Draw a mixture, write it and its card (``.card.json``, ``.card.md`` beside it).

    Args:
        mixture: Name of a recipe, or a YAML file that holds one.
        out: Train set to write, ``.jsonl``, ``.csv`` or ``.parquet``.
        size: Rows; None for the recipe's own, or 3,000.
        seed: Of every draw; None for the recipe's own, or 0.
        biased_share: Share of biased rows; None for the recipe's own.
        equal_types: Draw the same number of every bias type.
        disjoint: ``stereotype`` keeps the probe's stereotypes out, ``sentence`` its texts only.
        probe: Pairs that attribution will use; None for the shipped reference draw.

    Returns:
        The card.

    Raises:
        DataError: If a source is missing or too small.
        ConfigError: If the recipe's file is wrong.
    """
    recipe, own_size, own_seed = _recipe(mixture)
    built = build_mixture(
        recipe,
        size=size or own_size,
        seed=own_seed if seed is None else seed,
        biased_share=biased_share,
        equal_types=equal_types,
        disjoint=disjoint,
        probe=None if probe is None else load_probe_pairs(probe),
    )
    licences = {name: pool.licence for name, pool in built.pools.items()}
    write_rows([vars(row) | {"licence": licences[row.source]} for row in built.rows], out)
    found = card(built, out.read_bytes())
    write_card(found, out)
    return found


def _recipe(mixture: str) -> tuple[Recipe, int, int]:
    if not mixture.endswith((".yaml", ".yml")):
        return recipe_named(mixture), DEFAULT_SIZE, 0
    settings = load_recipe(mixture)
    parts = tuple(Part(p.source, p.is_bias, p.share) for p in settings.parts)
    return Recipe(settings.name, settings.what, parts), settings.size, settings.seed


def describe_corpus(name: str) -> list[str]:
    """Return lines that say what a corpus is, where its files lie and what they hold.

    Raises:
        DataError: If there is no corpus of that name.
    """
    corpus = corpus_named(name)
    lines = [
        corpus.title,
        f"licence:  {corpus.licence}{'  (non-commercial)' if corpus.non_commercial else ''}",
        f"home:     {corpus.home}",
        f"biased:   {corpus.biased}",
    ]
    for file in corpus.files:
        place, path = find(file)
        pinned = "sha256 pinned" if file.sha256 else "sha256 recorded at the first fetch"
        lines.append(f"file:     {file.path}  {place}  ({pinned}){'' if path else '  ' + file.url}")
    if find_files(corpus) is None:
        return [*lines, f"records:  not at hand; 'biasdiff data fetch {name}' brings it"]
    contents = read_corpus(corpus)
    labels = Counter(
        {1: "biased", 0: "not biased", None: "not labelled"}[r.is_bias] for r in contents.records
    )
    counts = ", ".join(f"{count} {label}" for label, count in labels.most_common())
    lines.append(f"records:  {len(contents.records)} ({counts})")
    lines += [f"set aside: {s.file} line {s.line}: {s.reason}" for s in contents.set_aside]
    return lines
