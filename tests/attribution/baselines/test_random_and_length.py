from __future__ import annotations

from collections.abc import Callable

import numpy as np

from biasdiff.attribution.baselines import BASELINES
from biasdiff.attribution.material import Material
from biasdiff.data.records import TrainExample

Make = Callable[..., Material]


def test_random_follows_its_seed(material: Make) -> None:
    draws = [BASELINES["random"].score(material(seed=seed)).overall for seed in (3, 4)]
    assert (draws[0] == np.random.default_rng(3).random(6)).all()
    assert (draws[0] != draws[1]).all()


def test_length_counts_target_tokens(material: Make) -> None:
    completion = TrainExample("c", 1, prompt="The nurse said ", completion="Rain falls.")
    given = material(texts=["Rain falls.", completion, "A cat sleeps. " * 40])
    tokenizer = given.tokenizer
    rain = len(tokenizer("Rain falls.", add_special_tokens=False)["input_ids"])
    # Of a completion the closing token is a target, the prompt is not; 64 is the context, whose
    # first token is a condition only.
    assert BASELINES["length"].score(given).overall.tolist() == [rain, rain + 1, 63]
