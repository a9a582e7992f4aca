from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from biasdiff.attribution.baselines import BASELINES
from biasdiff.attribution.baselines.hidden_states import (
    Representation,
    pool,
    pooled_states,
    representation_of,
)
from biasdiff.attribution.material import Material
from biasdiff.attribution.pair_classifier import fit_pair_classifier, pair_groups
from biasdiff.data.encoding import Encoding
from biasdiff.data.records import TrainExample
from biasdiff.errors import ConfigError, NonFiniteError
from biasdiff.functional.losses import IGNORED
from tiny_models import ARCHITECTURES

Make = Callable[..., Material]
EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)
COMPLETION = TrainExample("c", 9, prompt="The nurse said ", completion="nothing at all.")
TEXTS = ["The nurse said she cried.", COMPLETION, "Rain falls.", "Water boils at sea level. " * 3]


def slow_state(model: Any, encoding: Encoding, layer: int, pooling: str) -> np.ndarray:
    """Return one text's vector: no batch, no padding, the whole model."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([encoding.input_ids]), output_hidden_states=True)
    states = output.hidden_states[layer][0].numpy()
    targets = [i for i, label in enumerate(encoding.labels) if i and label != IGNORED]
    return np.asarray(states[targets[-1]] if pooling == "last" else states[targets].mean(0))


def slow_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_states_one_text_at_a_time(
    material: Make, architecture: str, layer: int, pooling: str
) -> None:
    given = material(architecture, texts=TEXTS)
    for budget in (1, 70, 1000):
        found = pooled_states(
            given.model,
            given.encodings,
            given.names,
            layer=layer,
            pooling=pooling,
            max_tokens=budget,
        )
        for row, encoding in zip(found, given.encodings, strict=True):
            slow = slow_state(given.model, encoding, layer, pooling)
            assert row == pytest.approx(slow, rel=1e-9, abs=1e-9)


@EVERY_ARCHITECTURE
@pytest.mark.parametrize(
    ("options", "place", "pooling"),
    [
        ({}, 1, "mean"),
        ({"layer": 0}, 0, "mean"),
        ({"layer": -1, "pooling": "last"}, 2, "last"),
    ],
)
def test_similarity_is_the_mean_cosine(
    material: Make, architecture: str, options: dict[str, Any], place: int, pooling: str
) -> None:
    given = material(architecture, texts=TEXTS, options=options)
    scores = BASELINES["rep_sim"].score(given)
    probes = [slow_state(given.model, e, place, pooling) for e in given.probes.more]
    for row, encoding in enumerate(given.encodings):
        own = slow_state(given.model, encoding, place, pooling)
        cosines = [slow_cosine(own, probe) for probe in probes]
        assert scores.overall[row] == pytest.approx(np.mean(cosines), rel=1e-9)
        typed = [np.mean(cosines[3:]), np.mean(cosines[:3])]
        assert scores.by_type[row].tolist() == pytest.approx(typed, rel=1e-9)
    assert scores.bias_types == ("age", "gender")


@EVERY_ARCHITECTURE
def test_the_classifier_is_that_of_states_one_text_at_a_time(
    material: Make, architecture: str
) -> None:
    given = material(architecture, texts=TEXTS, options={"layer": 2}, seed=5)
    more, less, train = (
        np.stack([slow_state(given.model, e, 2, "mean") for e in encodings])
        for encodings in (given.probes.more, given.probes.less, given.encodings)
    )
    fitted = fit_pair_classifier(more, less, pair_groups(given.pairs), seed=5)
    scores = BASELINES["rep_classifier"].score(given).overall
    assert scores == pytest.approx(fitted.decide(train), rel=1e-4, abs=1e-6)


def test_the_adapter_takes_part(material: Make) -> None:
    given = material()
    adapted = BASELINES["rep_sim"].score(given).overall
    with given.model.disable_adapter():
        plain = BASELINES["rep_sim"].score(given).overall
    assert np.abs(adapted - plain).max() > 1e-3


def test_dropout_plays_no_part(adapted: Callable[..., tuple[Any, Any]], material: Make) -> None:
    model, _ = adapted("llama", torch.float64, dropout=0.5)
    given = replace(material(), model=model.train())
    first, second = (BASELINES["rep_sim"].score(given).overall for _ in range(2))
    assert (first == second).all()


def test_padding_is_left_out_whatever_it_holds() -> None:
    states = torch.arange(24.0).reshape(2, 4, 3)
    targets = torch.tensor([[False, True, True, False], [False, True, False, False]])
    states[0, 3] = states[1, 2:] = torch.nan
    mean, last = (pool(states, targets, pooling) for pooling in ("mean", "last"))
    assert mean.tolist() == [[4.5, 5.5, 6.5], [15, 16, 17]]
    assert last.tolist() == [[6, 7, 8], [15, 16, 17]]
    half = pool(states.bfloat16(), targets, "mean")
    assert half.dtype == torch.float32


def test_which_layer_is_the_middle(material: Make) -> None:
    model = material().model
    assert Representation().place(model, "rep_sim") == 1
    for blocks, middle in ((1, 1), (3, 2), (12, 6), (30, 15)):
        model.config.num_hidden_layers = blocks
        assert Representation().place(model, "rep_sim") == middle
        assert Representation(-1).place(model, "rep_sim") == blocks


@pytest.mark.parametrize("name", ["rep_sim", "rep_classifier"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"layer": -2},
            "layer is -2; expected nothing for the middle, -1 for the last, or 0 and u",
        ),
        ({"layer": True}, "layer is True; expected nothing for the middle"),
        ({"layer": "middle"}, "layer is 'middle'; expected nothing for the middle"),
        ({"pooling": "max"}, "pooling is 'max'; expected mean or last; mend attribution.options."),
        ({"poling": "mean"}, r"no option 'poling' \(did you mean 'pooling'\?\); expected some of"),
    ],
)
def test_options_that_are_refused(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        BASELINES[name].check(options)


def test_options() -> None:
    assert representation_of({}, "rep_sim") == Representation(None, "mean")
    found = representation_of({"layer": 3, "pooling": "last"}, "rep_sim")
    assert found == Representation(3, "last")


@pytest.mark.parametrize("name", ["rep_sim", "rep_classifier"])
def test_a_layer_that_the_model_lacks(material: Make, name: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"{name}: layer is 3; expected -1, or 0 to 2 for this model; mend attribution\.opt",
    ):
        BASELINES[name].score(material(options={"layer": 3}))


def test_broken_states_are_named(material: Make) -> None:
    given = material(texts=["Rain falls.", "Water boils."])
    given.model.get_input_embeddings().weight.data[given.encodings[1].input_ids[1]] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"hidden states of 1 texts are not finite: row-1; expected finite"
    ):
        pooled_states(
            given.model,
            given.encodings,
            given.names,
            layer=1,
            pooling="mean",
            max_tokens=100,
        )
    assert not given.model.training
