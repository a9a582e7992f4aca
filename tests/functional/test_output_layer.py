from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from biasdiff.functional import output_layer
from biasdiff.functional.output_layer import linear_cross_entropy


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("chunk_bytes", [1, 400, 2**27])
def test_losses_and_gradients_are_those_of_autograd(
    with_bias: bool, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", chunk_bytes)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=draw, dtype=torch.float64)
    bias = torch.randn(11, generator=draw, dtype=torch.float64) if with_bias else None
    targets = torch.randint(11, (7,), generator=draw)
    scales = torch.rand(7, generator=draw, dtype=torch.float64)
    expected = cross_entropy(linear(hidden, weight, bias), targets, reduction="none")
    (slope,) = torch.autograd.grad((expected * scales).sum(), hidden)
    losses, gradients = linear_cross_entropy(hidden.detach(), weight, targets, scales, bias)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, slope, rtol=1e-12, atol=1e-14)


def test_large_logits_do_not_overflow_and_half_precision_stays_half() -> None:
    hidden = torch.full((2, 4), 60.0)
    weight = torch.eye(4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    losses, gradients = linear_cross_entropy(hidden, weight, torch.tensor([3, 0]), torch.ones(2))
    assert losses.tolist() == pytest.approx([0, 180], abs=1e-3)
    assert torch.isfinite(gradients).all()
    losses, gradients = linear_cross_entropy(
        hidden.bfloat16(), weight.bfloat16(), torch.tensor([3, 0]), torch.ones(2)
    )
    assert losses.dtype == torch.float32
    assert gradients.dtype == torch.bfloat16
