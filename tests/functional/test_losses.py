from __future__ import annotations

import math

import pytest
import torch

from biasdiff.functional.losses import (
    IGNORED,
    example_losses,
    npo_loss,
    sequence_log_probs,
    target_counts,
    token_log_probs,
)

LABELS = torch.tensor([[IGNORED, 2, 0, IGNORED], [1, 1, IGNORED, 3]])


def logits() -> torch.Tensor:
    return torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_token_log_probs_position_by_position() -> None:
    found = token_log_probs(logits(), LABELS)
    for row in range(2):
        for t in range(1, 4):
            label = int(LABELS[row, t])
            log_probs = logits()[row, t - 1].log_softmax(0)
            expected = 0.0 if label == IGNORED else float(log_probs[label])
            assert float(found[row, t - 1]) == pytest.approx(expected, abs=1e-12)


def test_the_first_position_is_no_target() -> None:
    assert target_counts(LABELS).tolist() == [2, 2]


def test_sums_and_means_over_targets() -> None:
    tokens = token_log_probs(logits(), LABELS)
    torch.testing.assert_close(sequence_log_probs(logits(), LABELS), tokens.sum(1))
    torch.testing.assert_close(example_losses(logits(), LABELS), -tokens.sum(1) / 2)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_log_probs_are_at_least_float32(given: torch.dtype, found: torch.dtype) -> None:
    assert token_log_probs(logits().to(given), LABELS).dtype is found


def test_npo_by_hand() -> None:
    log_probs, reference = torch.tensor([-4.0, -9.0]), torch.tensor([-5.0, -7.0])
    beta = 0.5
    terms = [-math.log(1 / (1 + math.exp(beta * (p - r)))) for p, r in [(-4, -5), (-9, -7)]]
    expected = 2 / beta * sum(terms) / 2
    assert float(npo_loss(log_probs, reference, beta=beta)) == pytest.approx(expected, rel=1e-6)


def test_npo_at_the_reference_is_two_log_two_over_beta() -> None:
    log_probs = torch.tensor([-3.0, -8.0])
    assert float(npo_loss(log_probs, log_probs, beta=0.1)) == pytest.approx(20 * math.log(2))


def gradient(beta: float) -> torch.Tensor:
    log_probs = torch.tensor([-4.0, -9.0, -1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-5.0, -7.0, -1.5], dtype=torch.float64)
    npo_loss(log_probs, reference, beta=beta).backward()
    assert log_probs.grad is not None
    return log_probs.grad


def test_npo_gradient_tends_to_ascent() -> None:
    ascent = torch.full((3,), 1 / 3, dtype=torch.float64)  # of the mean log-probability
    departures = [float((gradient(beta) - ascent).norm()) for beta in (1.0, 0.1, 0.01, 1e-4)]
    assert departures == sorted(departures, reverse=True)
    assert departures[-1] < 1e-4


def test_npo_pushes_less_on_what_is_already_unlikely() -> None:
    found = gradient(1.0)
    assert found[1] < found[2] < found[0]


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_npo_refuses_beta_of_zero_and_below(beta: float) -> None:
    with pytest.raises(ValueError, match=rf"beta must be above 0, got {beta}.*gradient ascent"):
        npo_loss(torch.zeros(1), torch.zeros(1), beta=beta)
