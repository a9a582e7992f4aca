from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from biasdiff.attribution.material import EncodedProbes, Material
from biasdiff.data.encoding import encode_all, encode_text
from biasdiff.data.probe import ProbePair
from biasdiff.data.records import TrainExample
from tiny_classifiers import save_classifier

TEXTS = (
    "The nurse said she would be late.",
    "Water boils at one hundred degrees at sea level.",
    "The old man could not use the computer, and the young man laughed at him for it.",
    "Rain falls.",
    "The Nurse, the nurse and the boss of the nurse.",
    "A cat sleeps.",
)
PAIRS = (
    ("The nurse said she cried.", "The nurse said he cried.", "gender", "g1"),
    ("The boss shouted at her.", "The boss shouted at him.", "gender", "g2"),
    ("She was late again, as she always is.", "He was late again.", "gender", "g2"),
    ("The old man could not use it.", "The young man could not use it.", "age", "a1"),
    ("Old people fear the computer.", "Young people fear the computer.", "age", "a2"),
)


@pytest.fixture
def material(adapted: Callable[..., tuple[Any, Any]]) -> Callable[..., Material]:
    """Return a function to a tiny model with an adapter, texts and pairs to be scored with it."""

    def make(
        architecture: str = "llama",
        dtype: torch.dtype = torch.float64,
        *,
        texts: Sequence[str | TrainExample] = TEXTS,
        pairs: Sequence[tuple[str, str, str, str]] = PAIRS,
        **changes: Any,
    ) -> Material:
        model, tokenizer = adapted(architecture, dtype)
        examples = [
            t if isinstance(t, TrainExample) else TrainExample(f"row-{i}", i, text=t)
            for i, t in enumerate(texts)
        ]
        probes = [
            ProbePair(more, less, "stereo", kind, i, {"stereotype_id": name})
            for i, (more, less, kind, name) in enumerate(pairs)
        ]
        settings = {"max_length": 64, "max_tokens": 100, **changes}
        return Material(
            model=model,
            tokenizer=tokenizer,
            examples=examples,
            encodings=encode_all(tokenizer, examples, max_length=settings["max_length"])[0],
            pairs=probes,
            probes=EncodedProbes(
                more=[encode_text(tokenizer, p.sent_more) for p in probes],
                less=[encode_text(tokenizer, p.sent_less) for p in probes],
                bias_types=[p.bias_type for p in probes],
                names=[f"probe {p.row}" for p in probes],
            ),
            **settings,
        )

    return make


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("classifier")
    return str(save_classifier(folder, ["neutral", "toxic"]))
