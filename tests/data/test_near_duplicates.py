from __future__ import annotations

import random

import pytest

from biasdiff.data.near_duplicates import (
    NgramIndex,
    near_duplicates,
    normalised,
    word_ngrams,
)

WORDS = ["the", "old", "man", "lost", "his", "keys", "again", "today"]


def slow_jaccard(a: str, b: str) -> float:
    left, right = set(word_ngrams(a)), set(word_ngrams(b))
    return len(left & right) / len(left | right) if left | right else 0.0


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(count)]


def test_ngrams_of_normalised_words() -> None:
    assert normalised('  "It’s" HIS -- key!') == "it's his -- key"
    assert word_ngrams("The old man lost it.") == ["the old man", "old man lost", "man lost it"]
    assert word_ngrams("Hello, you!") == ["hello you"]
    assert word_ngrams("!!") == []


@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.0])
def test_against_every_pair_compared_one_by_one(threshold: float) -> None:
    texts, others = sentences(150, 0), sentences(120, 1)
    found = {
        (m.index, m.other): m.jaccard for m in near_duplicates(texts, others, threshold=threshold)
    }
    expected = {
        (i, j): slow_jaccard(a, b)
        for i, a in enumerate(texts)
        for j, b in enumerate(others)
        if slow_jaccard(a, b) >= threshold
    }
    assert found == pytest.approx(expected)
    assert len(expected) > 10


def test_among_themselves_each_pair_once() -> None:
    texts = sentences(150, 2)
    found = {(m.index, m.other) for m in near_duplicates(texts)}
    expected = {
        (i, j) for i in range(150) for j in range(i) if slow_jaccard(texts[i], texts[j]) >= 0.5
    }
    assert found == expected


def test_many_texts_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(100, 3)
    whole = list(near_duplicates(texts))
    monkeypatch.setattr("biasdiff.data.near_duplicates._BLOCK", 7)
    assert sorted(near_duplicates(texts), key=lambda m: (m.index, m.other)) == sorted(
        whole, key=lambda m: (m.index, m.other)
    )


def test_index_agrees_with_the_matrix() -> None:
    texts, others = sentences(60, 4), sentences(80, 5)
    index = NgramIndex(others)
    assert len(index) == 80
    for text in texts:
        jaccard, other = index.nearest(text)
        assert jaccard == pytest.approx(max(slow_jaccard(text, o) for o in others))
        assert slow_jaccard(text, other) == pytest.approx(jaccard) or jaccard == 0
    assert NgramIndex().nearest("anything at all") == (0.0, "")


def test_nothing_to_compare() -> None:
    assert list(near_duplicates([], ["a b c"])) == []
    assert list(near_duplicates(["!"], ["?"])) == []


def test_threshold_is_checked() -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\], got 0"):
        list(near_duplicates(["a"], ["a"], threshold=0))
