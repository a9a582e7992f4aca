"""Losses of causal language models, per token, per example, and for unlearning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

IGNORED = -100
"""Label of a position that is not a target, as in transformers."""


def token_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log P(label_t | tokens before t), 0 where the label is `IGNORED`.

    Args:
        logits: [n, t, vocabulary]; position t predicts label t + 1.
        labels: [n, t], token ids or `IGNORED`.

    Returns:
        [n, t - 1] in float32 (float64 for float64 logits).
    """
    logits = logits[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = labels[:, 1:]
    losses = cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -losses.view_as(targets)


def target_counts(labels: Tensor) -> Tensor:
    """Return the number of target tokens of each example, [n]; the first position predicts none."""
    return labels[:, 1:].ne(IGNORED).sum(1)


def example_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ℓ_i = -(1/T_i) Σ_t log P(label_t | before), the mean over target tokens, [n].

    Args:
        logits: [n, t, vocabulary].
        labels: [n, t]; every example must have at least one target.
    """
    return -token_log_probs(logits, labels).sum(1) / target_counts(labels)


def sequence_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log π(z_i) = Σ_t log P(label_t | before), the sum over target tokens, [n]."""
    return token_log_probs(logits, labels).sum(1)


def npo_loss(log_probs: Tensor, reference_log_probs: Tensor, *, beta: float) -> Tensor:
    """Return the negative preference optimisation loss of a forget batch, a scalar.

    L = -(2/β) mean_i log σ(-β (log π_θ(z_i) - log π_ref(z_i))). As β → 0 its gradient tends to
    that of gradient ascent on the forget set. Source: Zhang et al. 2024 (NPO), with their 2/β; the
    BIAS DIFF paper's Eq. 7 prints 1/β.

    Args:
        log_probs: [n], sequence log-probabilities under the model being trained.
        reference_log_probs: [n], the same under the fixed reference (the biased model).
        beta: Inverse temperature, above 0.

    Raises:
        ValueError: If ``beta`` is not above 0.
    """
    if beta <= 0:
        raise ValueError(f"beta must be above 0, got {beta}: NPO's limit at 0 is gradient ascent.")
    return -(2 / beta) * logsigmoid(-beta * (log_probs - reference_log_probs)).mean()
