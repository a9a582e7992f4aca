from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from biasdiff.attribution.baselines import BASELINES
from biasdiff.attribution.material import Material
from biasdiff.data.records import TrainExample
from biasdiff.errors import NonFiniteError
from biasdiff.functional.losses import IGNORED
from tiny_models import ARCHITECTURES

Make = Callable[..., Material]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_base_model_one_text_at_a_time(
    material: Make, tiny: Callable[..., tuple[Any, Any]], architecture: str
) -> None:
    completion = TrainExample("c", 1, prompt="The nurse said ", completion="nothing at all.")
    given = material(architecture, texts=["The nurse cried.", completion, "Rain falls on the sea."])
    base, _ = tiny(architecture, torch.float64)
    slow = []
    for encoding in given.encodings:
        with torch.no_grad():
            chances = base(input_ids=torch.tensor([encoding.input_ids])).logits[0].softmax(-1)
        lost = [
            -chances[place - 1, label].log()
            for place, label in enumerate(encoding.labels)
            if place and label != IGNORED
        ]
        slow.append(float(sum(lost) / len(lost)))
    assert BASELINES["perplexity"].score(given).overall == pytest.approx(slow, rel=1e-9)


def test_the_adapter_is_switched_on_again_after_an_error(material: Make) -> None:
    given = material()
    ids = torch.tensor([given.encodings[0].input_ids])
    before = given.model(input_ids=ids).logits
    given.model.train()
    table = given.model.get_input_embeddings().weight
    kept = table.detach().clone()
    table.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="log-likelihood of 6 texts is not finite"):
        BASELINES["perplexity"].score(given)
    table.data.copy_(kept)
    assert given.model.training
    assert given.model.eval()(input_ids=ids).logits.equal(before)
