"""What the shipped sentences promise: enough of them, minimal pairs, marked facts, no easy cue."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from biasdiff.data.probe import ProbePair, load_probe_pairs
from biasdiff.data.shipped_mixture import ShippedMixture, shipped_mixture
from biasdiff.data.shipped_sets import shipped_facts, shipped_pairs
from biasdiff.errors import ConfigError

TYPES = {
    "age",
    "disability",
    "gender",
    "nationality",
    "physical-appearance",
    "race-color",
    "religion",
    "sexual-orientation",
    "socioeconomic",
}
SIZES = {
    "size": 400,
    "biased_share": 0.3,
    "probe_pairs": 120,
    "evaluation_pairs": 420,
    "held_out_texts": 150,
}


def changed_words(pair: ProbePair) -> int:
    a, b = pair.sent_more.split(), pair.sent_less.split()
    edits = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return max(
        sum(e[2] - e[1] for e in edits if e[0] != "equal"),
        sum(e[4] - e[3] for e in edits if e[0] != "equal"),
    )


def trigrams(sentence: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w'-]+", sentence.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def surface(sentence: str) -> dict[str, float]:
    """Return length, punctuation and opening word, which must not give a class away."""
    marks = {f"mark {m}": float(sentence.count(m)) for m in ",.?!\"'-"}
    opening = sentence.split()[0].strip("\",'").lower()
    return {"words": float(len(sentence.split())), f"opens with {opening}": 1.0, **marks}


def surface_auroc(biased: list[str], other: list[str]) -> float:
    features = DictVectorizer(sparse=False).fit_transform([surface(s) for s in biased + other])
    truth = np.array([1] * len(biased) + [0] * len(other))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    found = cross_val_predict(
        GradientBoostingClassifier(random_state=0),
        features,
        truth,
        cv=folds,
        method="predict_proba",
    )
    return float(roc_auc_score(truth, found[:, 1]))


def test_nine_types_and_at_least_nine_hundred_pairs() -> None:
    counts = Counter(pair.bias_type for pair in shipped_pairs())
    assert set(counts) == TYPES
    assert sum(counts.values()) >= 900
    assert min(counts.values()) >= 100


def test_pairs_are_minimal_and_marked() -> None:
    pairs = shipped_pairs()
    assert len({p.extra["id"] for p in pairs}) == len(pairs)
    assert len({p.sent_more for p in pairs} | {p.sent_less for p in pairs}) == 2 * len(pairs)
    for pair in pairs:
        assert pair.stereotype_id
        assert 1 <= changed_words(pair) <= 6, pair
    anti = sum(p.stereo_antistereo == "antistereo" for p in pairs) / len(pairs)
    assert 0.10 <= anti <= 0.15


def test_facts_mark_subject_and_object() -> None:
    facts = shipped_facts()
    assert len(facts) >= 900
    assert len({f.id for f in facts}) == len({f.text for f in facts}) == len(facts)
    assert len({f.relation for f in facts}) >= 20
    for fact in facts:
        assert fact.text.count(fact.subject) == 1, fact
        assert fact.text.count(fact.object) == 1, fact


def test_surface_cues_do_not_give_the_class_away() -> None:
    everything = surface_auroc(
        [p.sent_more for p in shipped_pairs()], [f.text for f in shipped_facts()]
    )
    train = shipped_mixture(**SIZES, seed=0).train  # type: ignore[arg-type]
    biased, other = ([e.text or "" for e in train if e.is_bias == truth] for truth in (1, 0))
    assert everything <= 0.65
    assert surface_auroc(biased, other) <= 0.65


@pytest.mark.parametrize("seed", [0, 1])
def test_draws_share_no_stereotype_sentence_or_subject(seed: int) -> None:
    mixture = shipped_mixture(**SIZES, seed=seed)  # type: ignore[arg-type]
    pairs = {p.extra["id"]: p for p in shipped_pairs()}
    facts = {f.id: f for f in shipped_facts()}
    biased = [pairs[e.id] for e in mixture.train if e.is_bias]
    draws = [biased, mixture.probe, mixture.pairs]
    ids = [{p.stereotype_id for p in draw} for draw in draws]
    sentences = [{s for p in draw for s in (p.sent_more, p.sent_less)} for draw in draws]
    for kind in (ids, sentences):
        assert not kind[0] & kind[1]
        assert not kind[0] & kind[2]
        assert not kind[1] & kind[2]
    known = {facts[e.id].subject for e in mixture.train if not e.is_bias}
    assert not known & {f.subject for f in mixture.held_out}
    assert len(mixture.train) == 400
    assert sum(e.is_bias or 0 for e in mixture.train) == 120
    assert {p.stereo_antistereo for p in biased} == {"stereo"}
    assert {p.bias_type for p in biased} == TYPES


def test_a_draw_does_not_depend_on_the_sizes_of_the_others() -> None:
    def draw(**changes: int) -> ShippedMixture:
        return shipped_mixture(**(SIZES | changes), seed=0)  # type: ignore[arg-type]

    assert draw().pairs == draw(size=100, probe_pairs=9).pairs
    assert draw().probe == draw(size=100, evaluation_pairs=9).probe


def test_too_large_a_size_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"data\.probe_pairs asks for 4000; expected at most \d+"):
        shipped_mixture(**(SIZES | {"probe_pairs": 4000}), seed=0)  # type: ignore[arg-type]


def test_no_sentence_is_taken_from_crows_pairs() -> None:
    folder = os.environ.get("BIASDIFF_DATA_DIR")
    path = Path(folder or ".") / "crows_pairs/crows_pairs_anonymized.csv"
    if not path.is_file():
        pytest.skip("BIASDIFF_DATA_DIR holds no crows_pairs/crows_pairs_anonymized.csv")
    theirs = [trigrams(s) for p in load_probe_pairs(path) for s in (p.sent_more, p.sent_less)]
    for pair in shipped_pairs():
        ours = trigrams(pair.sent_more)
        assert max(len(ours & t) / len(ours | t) for t in theirs) < 0.5, pair
