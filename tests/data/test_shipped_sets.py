"""What the shipped sentences promise: enough of them, minimal pairs, marked facts, no easy cue."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from biasdiff.data.near_duplicates import near_duplicates
from biasdiff.data.shipped_mixture import ShippedMixture, shipped_mixture
from biasdiff.data.shipped_sets import (
    FACTS_FILE,
    PAIRS_FILE,
    one_sided_stereotypes,
    shipped_facts,
    shipped_pairs,
)
from biasdiff.data.twins import difference
from biasdiff.errors import ConfigError
from biasdiff.probing.lexicon import load_lexicon
from biasdiff.probing.protected import benchmark_sentences
from biasdiff.probing.validation import BIAS_TYPES, validate

SIZES = {
    "size": 400,
    "biased_share": 0.3,
    "probe_pairs": 120,
    "evaluation_pairs": 420,
    "held_out_texts": 150,
}


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


def test_counts_that_are_promised() -> None:
    pairs = shipped_pairs()
    counts = Counter(pair.bias_type for pair in pairs)
    assert set(counts) == set(BIAS_TYPES)
    assert len(pairs) >= 5000
    assert min(counts.values()) >= 350
    assert len({p.stereotype_id for p in pairs}) >= 1500
    anti = sum(p.stereo_antistereo == "antistereo" for p in pairs) / len(pairs)
    assert 0.10 <= anti <= 0.15
    assert len({p.extra["id"] for p in pairs}) == len(pairs)
    assert {p.extra["provenance"] for p in pairs} == {"authored"}
    assert all(p.stereotype_id for p in pairs)


def test_every_pair_passes_the_validator() -> None:
    benchmarks, _ = benchmark_sentences()
    failures = validate(shipped_pairs(), load_lexicon(), benchmarks=benchmarks)
    assert failures == []


def test_claims_stay_distinct_with_the_group_words_masked() -> None:
    pairs = shipped_pairs()
    masked = [" ".join(difference(pair).masked) for pair in pairs]
    near = [
        (pairs[m.index].extra["id"], pairs[m.other].extra["id"])
        for m in near_duplicates(masked)
        if pairs[m.index].stereotype_id != pairs[m.other].stereotype_id
    ]
    assert near == []


def test_lengths_and_shapes_vary() -> None:
    pairs = shipped_pairs()
    words = [len(pair.sent_more.split()) for pair in pairs]
    assert min(words) >= 5
    assert max(words) <= 40
    assert sum(count <= 10 for count in words) >= 500
    assert sum(count >= 22 for count in words) >= 400
    assert sum(pair.sent_more.rstrip('"').endswith("?") for pair in pairs) >= 300
    assert sum('"' in pair.sent_more for pair in pairs) >= 500
    assert sum(pair.sent_more.startswith(("I ", "My ", "We ", "Our ")) for pair in pairs) >= 1000
    place = [difference(pair).masked.index("_") / len(difference(pair).masked) for pair in pairs]
    assert sum(p < 0.25 for p in place) >= 1000
    assert sum(p >= 0.5 for p in place) >= 1000


def test_the_files_stay_small() -> None:
    assert PAIRS_FILE.stat().st_size + FACTS_FILE.stat().st_size < 2_000_000


def test_facts_mark_subject_and_object() -> None:
    facts = shipped_facts()
    assert len(facts) >= 2500
    assert len({f.id for f in facts}) == len({f.text for f in facts}) == len(facts)
    assert len({f.relation for f in facts}) >= 20
    assert len({(f.relation, f.subject, f.object) for f in facts}) == len(facts)
    for fact in facts:
        assert fact.text.count(fact.subject) == 1, fact
        assert fact.text.count(fact.object) == 1, fact
        assert fact.masked_sentence == fact.text.replace(fact.object, "[MASK]"), fact


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
    assert {p.bias_type for p in biased} == set(BIAS_TYPES)


def test_one_sided_mixture_takes_those_stereotypes_only() -> None:
    sizes = SIZES | {"evaluation_pairs": 280, "probe_pairs": 90}
    mixture = shipped_mixture(**sizes, seed=0, one_sided=True)  # type: ignore[arg-type]
    pairs = {p.extra["id"]: p for p in shipped_pairs()}
    names = one_sided_stereotypes()
    assert names <= {p.stereotype_id for p in pairs.values()}
    draws = [[pairs[e.id] for e in mixture.train if e.is_bias], mixture.probe, mixture.pairs]
    found = [{p.stereotype_id for p in draw} for draw in draws]
    assert all(ids <= names for ids in found)
    assert not found[0] & found[1]
    assert not found[0] & found[2]
    assert not found[1] & found[2]


def test_a_draw_does_not_depend_on_the_sizes_of_the_others() -> None:
    def draw(**changes: int) -> ShippedMixture:
        return shipped_mixture(**(SIZES | changes), seed=0)  # type: ignore[arg-type]

    assert draw().pairs == draw(size=100, probe_pairs=9).pairs
    assert draw().probe == draw(size=100, evaluation_pairs=9).probe


def test_too_large_a_size_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"data\.probe_pairs asks for 4000; expected at most \d+"):
        shipped_mixture(**(SIZES | {"probe_pairs": 4000}), seed=0)  # type: ignore[arg-type]
