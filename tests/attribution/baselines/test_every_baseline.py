from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from biasdiff.attribution.baselines import BASELINES
from biasdiff.attribution.material import Material
from biasdiff.errors import ConfigError

Make = Callable[..., Material]
EVERY_BASELINE = pytest.mark.parametrize("name", BASELINES)
TYPED = {"bag_of_words", "bm25", "rep_sim"}


def options_of(name: str, folder: str) -> dict[str, Any]:
    return {"classifier": folder} if name == "classifier" else {}


def reordered(material: Material, order: list[int]) -> Material:
    return replace(
        material,
        examples=[material.examples[i] for i in order],
        encodings=[material.encodings[i] for i in order],
    )


def test_what_is_listed() -> None:
    assert all(name == estimator.name for name, estimator in BASELINES.items())
    assert all(estimator.is_baseline for estimator in BASELINES.values())
    lexical = {name for name, estimator in BASELINES.items() if estimator.is_lexical}
    assert lexical == {"length", "bag_of_words", "bm25", "tfidf_classifier"}
    twins = {name for name, estimator in BASELINES.items() if estimator.needs_twins}
    assert twins == {"tfidf_classifier", "rep_classifier"}


@EVERY_BASELINE
def test_a_finite_score_for_every_example(
    material: Make, classifier_folder: str, name: str
) -> None:
    given = material(options=options_of(name, classifier_folder))
    scores = BASELINES[name].score(given)
    n, types = len(given.examples), ("age", "gender") if name in TYPED else ()
    assert scores.overall.shape == (n,)
    assert scores.overall.dtype == np.float64
    assert np.isfinite(scores.overall).all()
    assert len(set(scores.overall)) > 1
    assert scores.bias_types == types
    assert scores.by_type.shape == (n, len(types))
    if types:
        # 2 probes of age, 3 of gender.
        assert scores.overall == pytest.approx(scores.by_type @ np.array([0.4, 0.6]))
        highest = BASELINES[name].score(replace(given, aggregate="max")).overall
        assert highest == pytest.approx(scores.by_type.max(1))


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "random"])
def test_neither_batches_nor_order_matter(
    material: Make, classifier_folder: str, name: str
) -> None:
    given = material(options=options_of(name, classifier_folder))
    scores = BASELINES[name].score(given).overall
    for budget in (1, 1000):
        again = BASELINES[name].score(replace(given, max_tokens=budget)).overall
        assert again == pytest.approx(scores, rel=1e-9, abs=1e-9)
    order = [4, 2, 0, 5, 1, 3]
    moved = BASELINES[name].score(reordered(given, order)).overall
    # The tiny classifier computes in float32, in other batches now.
    assert moved == pytest.approx(scores[order], rel=1e-6, abs=1e-6)


@EVERY_BASELINE
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(
    material: Make, classifier_folder: str, name: str, training: bool
) -> None:
    given = material(options=options_of(name, classifier_folder))
    given.model.train(training)
    frozen = next(p for p in given.model.parameters() if p.requires_grad)
    frozen.requires_grad_(False)
    before = {n: (p.requires_grad, p.detach().clone()) for n, p in given.model.named_parameters()}
    BASELINES[name].score(given)
    assert given.model.training is training
    assert given.model.get_model_status().enabled is not False
    for parameter_name, parameter in given.model.named_parameters():
        assert parameter.requires_grad is before[parameter_name][0]
        assert parameter.equal(before[parameter_name][1])
        assert parameter.grad is None


@EVERY_BASELINE
def test_the_same_seed_gives_the_same_scores(
    material: Make, classifier_folder: str, name: str
) -> None:
    given = material(options=options_of(name, classifier_folder), seed=3)
    first, second = (BASELINES[name].score(given) for _ in range(2))
    assert (first.overall == second.overall).all()
    assert (first.by_type == second.by_type).all()


@EVERY_BASELINE
def test_unknown_options_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"{name} has no option 'lair'.*; expected .*; mend attribution\.options\.{name}\.",
    ):
        BASELINES[name].check({"lair": 1})


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "classifier"])
def test_no_option_is_needed(name: str) -> None:
    BASELINES[name].check({})
