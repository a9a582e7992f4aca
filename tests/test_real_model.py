"""The real model: SmolLM2-135M from the package index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from biasdiff.attribution.gradients import per_example_gradients
from biasdiff.config import config_from
from biasdiff.data.batching import make_batch
from biasdiff.data.draws import shipped_draw
from biasdiff.data.encoding import encode_text
from biasdiff.data.shipped_sets import shipped_facts
from biasdiff.evaluation.benchmark import Subject
from biasdiff.evaluation.perplexity import perplexity_metrics, score_texts
from biasdiff.models.loading import ModelSource, load_model, load_tokenizer, resolve_model
from biasdiff.models.lora import LoraSettings, add_adapter
from biasdiff.models.smollm2 import ALIAS
from biasdiff.pipeline.layout import layout_of
from biasdiff.pipeline.run import run, status
from biasdiff.training.target_losses import backward_example_losses
from biasdiff.training.token_scores import score_token_pairs
from tiny_models import randomise_lora, slow_gradients

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return resolve_model(ALIAS)


@pytest.fixture(scope="module")
def tokenizer(source: ModelSource) -> Any:
    return load_tokenizer(source)


def test_the_alias_is_one_local_folder_in_float32(source: ModelSource, tokenizer: Any) -> None:
    model = load_model(source)
    assert Path(source.location, "model.safetensors").is_file()
    assert resolve_model(ALIAS).fingerprint == source.fingerprint
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert tokenizer.bos_token == "<|im_start|>"


def test_it_speaks_english(source: ModelSource, tokenizer: Any) -> None:
    texts = [fact.text for fact in shipped_facts()[::40]]
    scrambled = [" ".join(reversed(text.split())) for text in texts]
    plain, mixed = (
        perplexity_metrics(score_texts(Subject(load_model(source), tokenizer, 2048, 512), t))[
            "perplexity"
        ]
        for t in (texts, scrambled)
    )
    assert 10 < plain.value < 400
    assert mixed.value > 3 * plain.value


def test_batched_gradients_equal_one_by_one(source: ModelSource, tokenizer: Any) -> None:
    # In float32 the two differ by their rounding, 1e-5 to 3e-5: what is meant shows in float64.
    base = load_model(source, dtype=torch.float64)
    model = randomise_lora(add_adapter(base, LoraSettings(), seed=0).double(), scale=0.02)
    model.eval()
    encodings = [encode_text(tokenizer, fact.text) for fact in shipped_facts()[:3]]
    found: dict[str, torch.Tensor] = {}
    with per_example_gradients(model, found.__setitem__):
        backward_example_losses(model, make_batch(encodings, side="left"))
    for row, encoding in enumerate(encodings):
        for name, slow in slow_gradients(model, encoding).items():
            gap = (found[name][row] - slow.flatten()).norm() / slow.norm()
            assert gap <= 1e-9, (row, name, float(gap))


def test_all_stages_on_the_real_model(tmp_path: Path) -> None:
    config = config_from(
        {
            "name": "real",
            "runs": str(tmp_path),
            "model": {"name": ALIAS, "max_tokens": 512},
            "data": {
                "size": 40,
                "probe_pairs": 9,
                "evaluation_pairs": 18,
                "held_out_texts": 9,
            },
            "warmup": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3},
            "attribution": {"also": ["less", "random", "length", "bag_of_words"]},
            "mitigation": {"npo": {"epochs": 1, "batch_size": 4}},
        }
    )
    results = run(config)
    layout = layout_of(config)
    assert {line.state for line in status(layout.folder)} == {"complete"}
    assert results["data"]["train_biased"] == 12
    assert results["selected"] == 14
    assert set(results["detection"]) == {"contrast", "less", "random", "length", "bag_of_words"}
    ratio = results["differences"]["biased - base"]["perplexity"]["perplexity_ratio"]["value"]
    assert 0 < ratio < 1, "training on facts must make held-out facts likelier"
    scores = pd.read_parquet(layout.stage("attribute") / "scores.parquet")
    assert len(scores) == 40
    assert scores["score"].between(-1, 1).all()


def test_shared_beginnings_give_the_scores_of_whole_sentences(
    source: ModelSource, tokenizer: Any
) -> None:
    pairs = [
        (encode_text(tokenizer, pair.sent_more), encode_text(tokenizer, pair.sent_less))
        for pair in shipped_draw("validation")[::25]
    ]
    model = load_model(source)
    shared = score_token_pairs(model, pairs, max_tokens=512)
    plain = score_token_pairs(model, pairs, max_tokens=512, share_prefixes=False)
    for one, other in zip(shared, plain, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a == pytest.approx(b, abs=2e-3)
            assert a.sum() == pytest.approx(b.sum(), abs=1e-3)
