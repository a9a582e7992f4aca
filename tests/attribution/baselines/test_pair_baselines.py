"""The two baselines that learn from pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from biasdiff.attribution.baselines import BASELINES
from biasdiff.attribution.material import Material

Make = Callable[..., Material]
PEOPLE = ("nurse", "boss", "engineer", "old man", "young man", "secretary", "cook", "driver")
PLACES = ("at sea", "in Paris", "in the valley", "behind the house", "by the bridge")
BOTH = pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tfidf_classifier", {}),
        ("rep_classifier", {}),
        ("rep_classifier", {"layer": 0}),
        ("rep_classifier", {"layer": -1, "pooling": "last"}),
    ],
    ids=["tfidf", "middle", "embeddings", "last"],
)


def planted() -> list[tuple[str, str, str, str]]:
    """Return pairs told apart by one word, that ends them, in stereotypes of five pairs each."""
    return [
        (f"The {person} {place} is lazy", f"The {person} {place} is kind", "work", person)
        for person in PEOPLE
        for place in PLACES
    ]


def swapped() -> list[tuple[str, str, str, str]]:
    chance = np.random.default_rng(0)
    pairs = planted()
    return [(b, a, *rest) if chance.random() < 0.5 else (a, b, *rest) for a, b, *rest in pairs]


@BOTH
def test_a_planted_word_is_found(material: Make, name: str, options: dict[str, Any]) -> None:
    texts = ["A cat is lazy", "A cat is kind", "The warm stone wall is lazy", "The winter is kind"]
    scores = BASELINES[name].score(material(texts=texts, pairs=planted(), options=options)).overall
    assert min(scores[0], scores[2]) > max(scores[1], scores[3])


@BOTH
def test_nothing_is_learned_from_twins_swapped_at_random(
    material: Make, name: str, options: dict[str, Any]
) -> None:
    texts = [sentence for pair in planted() for sentence in pair[:2]]
    scores = BASELINES[name].score(material(texts=texts, pairs=swapped(), options=options)).overall
    # Log-odds; without the penalty from cross-validation they are in the tens here.
    assert np.abs(scores).max() < 1
