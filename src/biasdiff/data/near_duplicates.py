"""Texts that say nearly the same: exact Jaccard similarity of word n-grams, by sparse products.

MinHash estimates this number; for sets of up to some hundred thousand short texts it can be had
exactly at the same cost.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

THRESHOLD = 0.5
NGRAM = 3
_WORD = re.compile(r"[\w'-]+")
_BLOCK = 2048


@dataclass(frozen=True)
class Match:
    """Two texts of similarity ``jaccard`` (1 for texts equal after normalisation).

    Attributes:
        index: Of the first text.
        other: Of the second, in the list it was compared with.
        jaccard: Shared word n-grams over all of both.
    """

    index: int
    other: int
    jaccard: float


def normalised(text: str) -> str:
    """Return the words of a text in lower case, without punctuation."""
    return " ".join(_WORD.findall(text.lower().replace("’", "'")))


def word_ngrams(text: str, n: int = NGRAM) -> list[str]:
    """Return the word n-grams of a text; a shorter text is one n-gram of its own."""
    words = normalised(text).split()
    if len(words) < n:
        return [" ".join(words)] if words else []
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


def near_duplicates(
    texts: Sequence[str],
    others: Sequence[str] | None = None,
    *,
    threshold: float = THRESHOLD,
    n: int = NGRAM,
) -> Iterator[Match]:
    """Yield the pairs of texts whose word n-grams have a Jaccard similarity of ``threshold``.

    J(A, B) = |A ∩ B| / |A ∪ B| over the sets of word n-grams.

    Args:
        texts: Texts to look at.
        others: Texts to compare with; None compares ``texts`` among themselves, each pair once
            with ``index`` above ``other``.
        threshold: Least similarity, in (0, 1].
        n: Words in an n-gram.

    Raises:
        ValueError: If the threshold is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    own = others is None
    compared = texts if others is None else others
    if not texts or not compared:
        return
    counter = CountVectorizer(analyzer=lambda text: word_ngrams(text, n), binary=True)
    try:
        right = counter.fit_transform(compared)
    except ValueError:  # no text holds a word
        return
    left = right if own else counter.transform(texts)
    # n-grams the others do not know count for the size of a text all the same
    sizes = np.array([len(set(word_ngrams(text, n))) for text in texts])
    other_sizes = np.asarray(right.sum(1)).ravel()
    for start in range(0, len(texts), _BLOCK):
        yield from _block(
            left[start : start + _BLOCK], right, sizes, other_sizes, start, threshold, own
        )


def _block(
    left: Any,
    right: Any,
    sizes: np.ndarray[Any, Any],
    other_sizes: np.ndarray[Any, Any],
    start: int,
    threshold: float,
    own: bool,
) -> Iterator[Match]:
    shared = (left @ right.T).tocoo()
    rows = shared.row + start
    jaccard = shared.data / (sizes[rows] + other_sizes[shared.col] - shared.data)
    keep = jaccard >= threshold
    if own:
        keep &= shared.col < rows
    for row, col, value in zip(rows[keep], shared.col[keep], jaccard[keep], strict=True):
        yield Match(int(row), int(col), float(value))


class NgramIndex:
    """A growing set of texts that tells the nearest of them: `near_duplicates` one by one.

    Args:
        texts: To begin with.
        n: Words in an n-gram.
    """

    def __init__(self, texts: Sequence[str] = (), *, n: int = NGRAM) -> None:
        self._n = n
        self._texts: list[str] = []
        self._sizes: list[int] = []
        self._holders: dict[str, list[int]] = {}
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Add a text."""
        grams = set(word_ngrams(text, self._n))
        for gram in grams:
            self._holders.setdefault(gram, []).append(len(self._texts))
        self._texts.append(text)
        self._sizes.append(len(grams))

    def nearest(self, text: str) -> tuple[float, str]:
        """Return the highest similarity of any text held, and that text (0 and "" for none)."""
        grams = set(word_ngrams(text, self._n))
        shared = Counter(i for gram in grams for i in self._holders.get(gram, ()))
        best = max(
            ((count / (len(grams) + self._sizes[i] - count), i) for i, count in shared.items()),
            default=(0.0, -1),
        )
        return best[0], self._texts[best[1]] if best[1] >= 0 else ""
