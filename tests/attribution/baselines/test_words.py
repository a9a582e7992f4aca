from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from biasdiff.attribution.baselines import BASELINES
from biasdiff.attribution.material import Material
from biasdiff.errors import DataError

Make = Callable[..., Material]


def words(text: str) -> list[str]:
    """Split without the code under test; words of one letter count for nothing."""
    return [word for word in re.split(r"\W+", text.lower()) if len(word) > 1]


def slow_cosine(a: str, b: str) -> float:
    one, two = Counter(words(a)), Counter(words(b))
    lengths = [math.sqrt(sum(n * n for n in c.values())) for c in (one, two)]
    if not all(lengths):
        return 0.0
    return sum(one[word] * two[word] for word in one) / (lengths[0] * lengths[1])


def slow_bm25(document: str, query: str, collection: list[str]) -> float:
    split = [words(text) for text in collection]
    mean_length = sum(map(len, split)) / len(split)
    total = 0.0
    for word in words(query):
        holding = sum(word in text for text in split)
        weight = math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
        times = words(document).count(word)
        longer = 1 - 0.75 + 0.75 * len(words(document)) / mean_length
        total += weight * times / (times + 1.5 * longer)
    return total


def by_type(
    given: Material, similarity: Callable[[str, str], float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over the probes of age and of gender, and over all."""
    table = np.array([[similarity(t, p.sent_more) for p in given.pairs] for t in given.texts])
    types = [[p.bias_type == name for p in given.pairs] for name in ("age", "gender")]
    return np.stack([table[:, own].mean(1) for own in types], 1), table.mean(1)


def test_bag_of_words_is_the_mean_cosine_of_counts(material: Make) -> None:
    given = material()
    scores = BASELINES["bag_of_words"].score(given)
    typed, overall = by_type(given, slow_cosine)
    assert scores.by_type == pytest.approx(typed)
    assert scores.overall == pytest.approx(overall)


def test_bm25_by_its_formula(material: Make) -> None:
    given = material()
    scores = BASELINES["bm25"].score(given)
    typed, overall = by_type(given, lambda t, p: slow_bm25(t, p, given.texts))
    assert scores.by_type == pytest.approx(typed, rel=1e-12)
    assert scores.overall == pytest.approx(overall, rel=1e-12)
    assert (scores.by_type[:, 1] != scores.by_type[:, 0]).any()


def test_bm25_of_words_that_are_nowhere(material: Make) -> None:
    pairs = [("Zebras graze.", "Lions graze.", "animals", "z"), ("A b c", "", "letters", "l")]
    scores = BASELINES["bm25"].score(material(texts=["A b", "Rain falls."], pairs=pairs))
    assert (scores.by_type == 0).all()
    assert scores.bias_types == ("animals", "letters")


@pytest.mark.parametrize("name", ["bag_of_words", "bm25", "tfidf_classifier"])
def test_probes_without_words(material: Make, name: str) -> None:
    pairs = [("A.", "B.", "letters", "a"), ("C.", "D.", "letters", "c")]
    with pytest.raises(DataError, match=r"no word in any of the \d probe sentences; expected wo"):
        BASELINES[name].score(material(pairs=pairs))


def test_train_texts_without_words(material: Make) -> None:
    with pytest.raises(DataError, match="no word in any of the 2 train texts; expected words"):
        BASELINES["bm25"].score(material(texts=["A", "!"]))
    assert (BASELINES["bag_of_words"].score(material(texts=["A", "!"])).overall == 0).all()
