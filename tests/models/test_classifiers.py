from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from biasdiff.errors import ConfigError, ModelError, NonFiniteError
from biasdiff.models.classifiers import load_classifier
from tiny_classifiers import save_classifier
from tiny_models import tiny_tokenizer

SECTION = "here"


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("classifier")
    return str(save_classifier(folder, ["neutral", "Toxic"]))


def test_the_classifier_one_text_at_a_time(classifier: str) -> None:
    texts = ["The nurse said", "", " \n", "Rain falls. " * 60, "A cat sleeps on the warm stone"]
    found = load_classifier(classifier, batch=2, section=SECTION)(texts)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = tiny_tokenizer()
    for text, score in zip(texts, found, strict=True):
        if not text.strip():
            assert score == 0
            continue
        ids = torch.tensor([tokenizer(text)["input_ids"][:64]])
        with torch.no_grad():
            slow = model(input_ids=ids).logits[0].softmax(-1)[1]
        assert score == pytest.approx(float(slow), abs=1e-5)


def test_sigmoid_for_several_labels_and_for_one(tmp_path: Path) -> None:
    kinds = {"problem_type": "multi_label_classification", "pad": False}
    many = str(save_classifier(tmp_path / "many", ["insult", "toxicity", "threat"], **kinds))
    one = str(save_classifier(tmp_path / "one", ["LABEL_0"]))
    for name, label, place in ((many, None, 1), (one, "label_0", 0)):
        found = load_classifier(name, label=label, section=SECTION)(["Rain falls.", "A cat"])
        model = AutoModelForSequenceClassification.from_pretrained(name).eval()
        for text, score in zip(["Rain falls.", "A cat"], found, strict=True):
            with torch.no_grad():
                ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
                slow = model(input_ids=ids).logits[0].sigmoid()[place]
            assert score == pytest.approx(float(slow), abs=1e-5)


def test_what_cannot_be_a_classifier(
    classifier: str, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match=r"nowhere does not exist; expected a model folder"):
        load_classifier(str(tmp_path / "nowhere"), section=SECTION)
    with pytest.raises(
        ConfigError,
        match=r"classes neutral, Toxic; expected one called anger; name the class in here\.label",
    ):
        load_classifier(classifier, label="anger", section=SECTION)
    with pytest.raises(
        ModelError, match=r"lacks 1 tensors, for example score.weight; .*; name another in here\.c"
    ):
        load_classifier(str(tiny_folder("llama")), section=SECTION)
    unnamed = save_classifier(tmp_path / "unnamed", ["calm", "cross"])
    with pytest.raises(
        ConfigError, match="expected one called toxic or toxicity or negative or LABEL_1"
    ):
        load_classifier(str(unnamed), section=SECTION)
    (unnamed / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(
        ModelError,
        match=r"cannot be loaded \(.*; expected a sequence-class.*; check here\.class",
    ):
        load_classifier(str(unnamed), section=SECTION)


def test_a_probability_that_is_not_finite(classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(logits: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.full_like(logits, torch.nan)

    classify = load_classifier(classifier, section=SECTION)
    monkeypatch.setattr(torch.Tensor, "softmax", broken)
    with pytest.raises(NonFiniteError, match=r"a probability is not finite; expected finite logi"):
        classify(["Rain falls."])
