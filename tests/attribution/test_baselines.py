from __future__ import annotations

import numpy as np
import pytest

from biasdiff.attribution.baselines import BASELINES

TEXTS = ["the nurse said so", "water boils", "The Nurse, the nurse and more words than that"]
PROBES = ["the nurse cried", "a nurse"]


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_one_finite_score_a_text(name: str) -> None:
    scores = BASELINES[name](TEXTS, PROBES, 0)
    assert scores.shape == (3,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()


def test_random_follows_its_seed() -> None:
    draws = [BASELINES["random"](TEXTS, PROBES, seed) for seed in (3, 3, 4)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).all()


def test_length_counts_words() -> None:
    assert BASELINES["length"](TEXTS, PROBES, 0).tolist() == [4, 2, 9]


def test_bag_of_words_is_the_mean_cosine_of_counts() -> None:
    def counts(text: str) -> np.ndarray:
        # Scikit-learn's words have two letters or more, so "a" is none.
        vocabulary = ["the", "nurse", "said", "so", "water", "boils", "cried", "and", "more"]
        vocabulary += ["words", "than", "that"]
        words = text.lower().replace(",", "").split()
        return np.array([words.count(w) for w in vocabulary], dtype=float)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    expected = [np.mean([cosine(counts(t), counts(p)) for p in PROBES]) for t in TEXTS]
    assert BASELINES["bag_of_words"](TEXTS, PROBES, 0) == pytest.approx(expected)
