from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from biasdiff.attribution.baselines import BASELINES
from biasdiff.attribution.baselines.classifier import Settings, settings_of
from biasdiff.attribution.material import Material
from biasdiff.data.records import TrainExample
from biasdiff.errors import ConfigError, ModelError

Make = Callable[..., Material]
CLASSIFIER = BASELINES["classifier"]


@pytest.mark.parametrize(("label", "place"), [(None, 1), ("neutral", 0)])
def test_the_classifiers_probability(
    material: Make, classifier_folder: str, label: str | None, place: int
) -> None:
    completion = TrainExample("c", 1, prompt="The nurse ", completion="cried.")
    options = {"classifier": classifier_folder, "label": label, "batch": 2}
    given = material(texts=["Rain falls.", completion, "A cat sleeps at sea."], options=options)
    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder).eval()
    slow = []
    for text in ("Rain falls.", "The nurse cried.", "A cat sleeps at sea."):
        with torch.no_grad():
            ids = torch.tensor([given.tokenizer(text)["input_ids"]])
            slow.append(float(model(input_ids=ids).logits[0].softmax(-1)[place]))
    assert CLASSIFIER.score(given).overall == pytest.approx(slow, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, r"classifier: no classifier is named; expected attribution\.options\.classifier\.cl"),
        ({"classifier": ""}, "no classifier is named"),
        ({"classifier": 3}, "classifier is 3; expected a string; mend attribution.options.class"),
        ({"classifier": "x", "label": 1}, "label is 1; expected a string"),
        ({"classifier": "x", "batch": 0}, "batch is 0; expected a whole number of 1 or more"),
        ({"classifier": "x", "batch": True}, "batch is True; expected a whole number of 1"),
        ({"clasifier": "x"}, r"no option 'clasifier' \(did you mean 'classifier'\?\); expected"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        CLASSIFIER.check(options)


def test_options() -> None:
    assert settings_of({"classifier": "x"}) == Settings("x", None, 16)


def test_a_classifier_that_cannot_be_used(material: Make, classifier_folder: str) -> None:
    with pytest.raises(ModelError, match="/nowhere does not exist"):
        CLASSIFIER.score(material(options={"classifier": "/nowhere"}))
    options = {"classifier": classifier_folder, "label": "anger"}
    with pytest.raises(
        ConfigError, match=r"name the class in attribution\.options\.classifier\.label"
    ):
        CLASSIFIER.score(material(options=options))
