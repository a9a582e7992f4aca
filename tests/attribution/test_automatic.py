"""The automatic choice and the stack, on estimators whose quality is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from biasdiff.attribution import automatic
from biasdiff.attribution.automatic import (
    choose_automatically,
    held_out_scores,
    paired_accuracy,
    score_with,
    stack,
)
from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.material import EncodedProbes, Material
from biasdiff.attribution.registry import ESTIMATORS
from biasdiff.attribution.scores import Scores, untyped_scores
from biasdiff.data.encoding import encode_text
from biasdiff.data.probe import ProbePair
from biasdiff.data.records import TrainExample
from biasdiff.errors import ConfigError, DataError

Adapted = Callable[..., tuple[Any, Any]]


def scorer(name: str, score: Callable[[str], float]) -> DirectEstimator:
    def run(material: Material) -> Scores:
        return untyped_scores(np.array([score(text) for text in material.texts]))

    return DirectEstimator(name, name, run, lambda given: None)


@pytest.fixture
def material(adapted: Adapted) -> Material:
    model, tokenizer = adapted("llama")
    pairs = [
        ProbePair(
            f"The nurse {n} said she was late.",
            f"The nurse {n} said he was late.",
            "stereo",
            "gender" if n % 2 else "age",
            n,
            {"stereotype_id": f"s{n // 2}"},
        )
        for n in range(12)
    ]
    texts = [f"Doctor {n} says {who} is in." for n in range(3) for who in ("she", "he")]
    return Material(
        model=model,
        tokenizer=tokenizer,
        max_length=64,
        max_tokens=200,
        examples=[TrainExample(f"t{n}", n, text=text) for n, text in enumerate(texts)],
        encodings=[encode_text(tokenizer, text) for text in texts],
        pairs=pairs,
        probes=EncodedProbes(
            [encode_text(tokenizer, p.sent_more) for p in pairs],
            [encode_text(tokenizer, p.sent_less) for p in pairs],
            [p.bias_type for p in pairs],
            [str(p.row) for p in pairs],
        ),
    )


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, DirectEstimator]:
    estimators = {
        "good": scorer("good", lambda text: float("she" in text)),
        "bad": scorer("bad", lambda text: float("he was" in text and "she" not in text)),
        "noise": scorer("noise", lambda text: float(sum(map(ord, text)) % 7)),
    }
    monkeypatch.setattr(automatic, "_known", lambda: estimators)
    return estimators


def test_the_best_candidate_is_chosen_and_said(
    material: Material, known: dict[str, DirectEstimator]
) -> None:
    chosen = choose_automatically(replace(material, options={"candidates": list(known)}))
    assert chosen.notes["chosen"] == "good"
    assert chosen.notes["held_out_accuracy"]["good"] == 1.0
    assert chosen.notes["held_out_accuracy"]["bad"] == 0.0
    assert chosen.overall.tolist() == [1, 0, 1, 0, 1, 0]


def test_a_stack_weighs_by_what_helps(
    material: Material, known: dict[str, DirectEstimator]
) -> None:
    found = stack(replace(material, options={"candidates": list(known)}))
    weights = found.notes["weights"]
    assert weights["good"] > 0 > weights["bad"]
    assert abs(weights["noise"]) < weights["good"]
    assert (found.overall[::2] > found.overall[1::2]).all()


def test_no_stereotype_is_in_both_folds(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], set[str]]] = []

    def run(part: Material) -> Scores:
        probe = {pair.stereotype_id for pair in part.pairs}
        held = {p.stereotype_id for p in material.pairs if p.sent_more in part.texts}
        seen.append((probe, held))
        assert len(part.examples) == len(part.encodings)
        return untyped_scores(np.arange(len(part.examples), dtype=np.float64))

    one = DirectEstimator("one", "one", run, lambda given: None)
    monkeypatch.setattr(automatic, "_known", lambda: {"one": one})
    found = held_out_scores(material, ["one"], {})
    assert len(seen) == 2
    assert not any(probe & held for probe, held in seen)
    assert set.union(*(held for _, held in seen)) == {f"s{n}" for n in range(6)}
    assert np.isfinite(found["one"]).all()


def test_gradient_estimators_can_be_candidates(material: Material) -> None:
    options = {"candidates": ["contrast", "contrast_classifier", "tfidf_classifier"]}
    chosen = choose_automatically(replace(material, options=options))
    name = chosen.notes["chosen"]
    expected = score_with(name, material, {})
    np.testing.assert_allclose(chosen.overall, expected.overall)
    assert set(chosen.notes["held_out_accuracy"]) == set(options["candidates"])


def test_ties_count_half() -> None:
    assert paired_accuracy(np.array([1.0, 2.0, 0.0]), np.array([0.0, 2.0, 1.0])) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": []}, "auto: candidates is"),
        (
            {"candidates": ["less"]},
            r"is \['less'\]; expected a list of some of contrast",
        ),
        ({"candidates": ["auto"]}, "candidates is"),
        ({"lexical": "no"}, "lexical is 'no'; expected true or false"),
        ({"folds": 3}, "auto has no option 'folds'"),
        ({"settings": {"bm25": {}}}, "settings is 'bm25'"),
        ({"settings": {"adapter_contrast": {"epochs": -1}}}, "epochs"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ESTIMATORS["auto"].check(options)


def test_lexical_candidates_can_be_left_out(material: Material) -> None:
    options = {"candidates": ["contrast", "tfidf_classifier"], "lexical": False}
    chosen = choose_automatically(replace(material, options=options))
    assert list(chosen.notes["held_out_accuracy"]) == ["contrast"]


def test_too_few_stereotypes(material: Material) -> None:
    few = replace(material, pairs=material.pairs[:4])
    with pytest.raises(DataError, match="the probe pairs make 2 stereotypes; expected at least 4"):
        choose_automatically(few)
