"""Predicted against measured change of the probe loss after one optimizer step (Corollary 1)."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding, encode_text
from biasdiff.functional.adam import adam_direction, less_direction
from biasdiff.functional.losses import example_losses
from biasdiff.models.lora import load_adapter, lora_parameters
from biasdiff.training.checkpoints import AdamState, load_adam_state
from biasdiff.training.fine_tuning import TrainingSettings
from biasdiff.training.warmup import warm_up
from tiny_models import slow_vector

REGIMES = {"large gradients": (8.0, 1e-5), "small gradients": (0.008, 1e-3)}
"""LoRA's alpha, to which gradients are proportional, and the rate of the one step."""
PEOPLE = ("nurse", "old man", "engineer", "girl", "cat", "boss", "secretary", "winter")
DEEDS = ("could not use the computer", "said it was late", "fixed the bridge", "slept at home")
PROBES = ("The nurse said she was late.", "The old man slept.", "The girl could not fix it.")


def train_texts() -> list[str]:
    texts = [f"The {who} {deed}." for who in PEOPLE for deed in DEEDS]
    return random.Random(0).sample(texts, 28)


def mean_loss(model: Any, encodings: list[Encoding]) -> torch.Tensor:
    batch = make_batch(encodings)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
    return example_losses(model(**inputs, use_cache=False).logits, batch["labels"]).mean()


def measured_change(
    model: Any, example: Encoding, probes: list[Encoding], adam: AdamState, rate: float
) -> float:
    """Take one real AdamW step on the example alone, and take it back."""
    named = dict(lora_parameters(model))
    kept = {name: p.detach().clone() for name, p in named.items()}
    optimizer = torch.optim.AdamW(
        named.values(), lr=rate, betas=adam.betas, eps=adam.eps, weight_decay=0.0
    )
    for name, parameter in named.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(adam.step)),
            "exp_avg": adam.exp_avg[name].clone(),
            "exp_avg_sq": adam.exp_avg_sq[name].clone(),
        }
    with torch.no_grad():
        before = mean_loss(model, probes)
    optimizer.zero_grad()
    mean_loss(model, [example]).backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        after = mean_loss(model, probes)
        for name, parameter in named.items():
            parameter.copy_(kept[name])
    return float(after - before)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def warm(
    adapted: Callable[..., tuple[Any, Any]],
    tiny: Callable[..., tuple[Any, Any]],
    folder: Path,
    alpha: float,
) -> tuple[Any, AdamState, list[Encoding], list[Encoding]]:
    """Return the model and moments of a checkpoint read from disk, train examples and probes."""
    model, tokenizer = adapted("llama", torch.float64, rank=4, alpha=alpha)
    train = [encode_text(tokenizer, text) for text in train_texts()]
    settings = TrainingSettings(epochs=2, batch_size=4, learning_rate=2e-3, loss_average="example")
    warm_up(model, train, [str(i) for i in range(len(train))], settings, folder)
    checkpoint = folder / "checkpoints" / "epoch-2"
    base, _ = tiny("llama", torch.float64)
    restored = load_adapter(base, checkpoint, trainable=True).eval()
    assert all(p.dtype == torch.float64 for _, p in lora_parameters(restored))
    adam = load_adam_state(checkpoint, restored)
    assert adam is not None
    assert adam.step == 14
    return restored, adam, train, [encode_text(tokenizer, text) for text in PROBES]


@pytest.mark.parametrize("regime", REGIMES)
def test_predicted_loss_change_is_the_measured_one(
    adapted: Callable[..., tuple[Any, Any]],
    tiny: Callable[..., tuple[Any, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    regime: str,
) -> None:
    alpha, rate = REGIMES[regime]
    model, adam, train, probes = warm(adapted, tiny, tmp_path, alpha)
    assert len(train) >= 24
    m = torch.cat([t.flatten() for t in adam.exp_avg.values()])
    v = torch.cat([t.flatten() for t in adam.exp_avg_sq.values()])
    probe = torch.stack([slow_vector(model, p) for p in probes]).mean(0)
    gradients = torch.stack([slow_vector(model, e) for e in train])
    exact = adam_direction(gradients, m, v, step=adam.step + 1, betas=adam.betas, eps=adam.eps)
    less = less_direction(gradients, m, v, betas=adam.betas)
    measured = torch.tensor(
        [measured_change(model, e, probes, adam, rate) for e in train], dtype=torch.float64
    )
    by_exact, by_less, by_gradient = (-rate * side @ probe for side in (exact, less, gradients))
    cosines = torch.nn.functional.cosine_similarity(exact, less, dim=1)
    with capsys.disabled():
        print(
            f"\nCorollary 1, {regime} (median |g| {float(gradients.abs().median()):.1e}), "
            f"{len(train)} examples; correlation with the measured change: "
            f"exact Adam {correlation(by_exact, measured):.6f}, "
            f"LESS's Γ {correlation(by_less, measured):.4f}, "
            f"plain gradient {correlation(by_gradient, measured):.4f}; slope of exact "
            f"{float(measured @ by_exact / by_exact.square().sum()):.5f}; cos(Γ_less, Γ_exact) "
            f"{float(cosines.min()):.4f} to {float(cosines.max()):.4f}, lengths "
            f"{float((less.norm(dim=1) / exact.norm(dim=1)).mean()):.3f} : 1"
        )
    assert correlation(by_exact, measured) > 0.99
    torch.testing.assert_close(by_exact, measured, rtol=0.02, atol=float(measured.std()) * 0.02)
    assert correlation(by_less, measured) <= correlation(by_exact, measured) + 1e-6
