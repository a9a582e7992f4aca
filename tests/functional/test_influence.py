from __future__ import annotations

import pytest
import torch

from biasdiff.functional.influence import mean_cosine, outer_product_gradients


@pytest.mark.parametrize(("n", "t", "i", "o"), [(1, 1, 2, 3), (4, 5, 3, 2), (2, 7, 1, 1)])
def test_outer_products_equal_autograd(n: int, t: int, i: int, o: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(o, i, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(n, t, i, dtype=torch.float64)
    outputs = inputs @ weight.T
    losses = outputs.sin().square().sum((1, 2))
    slow = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    (output_gradients,) = torch.autograd.grad(losses.sum(), outputs)
    fast = outer_product_gradients(inputs, output_gradients)
    torch.testing.assert_close(fast, torch.stack(slow), rtol=1e-12, atol=1e-12)


def test_positions_without_gradient_add_nothing() -> None:
    torch.manual_seed(0)
    inputs, gradients = torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    gradients[:, 2:] = 0
    inputs[:, 2:] = 1e30
    expected = outer_product_gradients(inputs[:, :2], gradients[:, :2])
    torch.testing.assert_close(outer_product_gradients(inputs, gradients), expected)


def test_mean_cosine_equals_explicit_cosines() -> None:
    torch.manual_seed(0)
    train, probes = torch.randn(3, 10).double(), torch.randn(4, 10).double()
    unit = probes / probes.norm(dim=1, keepdim=True)
    found = mean_cosine(train @ unit.mean(0)[:, None], train.square().sum(1))
    cosines = torch.nn.functional.cosine_similarity(train[:, None], probes[None], dim=2)
    torch.testing.assert_close(found[:, 0], cosines.mean(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_direction_scores_zero(dtype: torch.dtype) -> None:
    found = mean_cosine(
        torch.tensor([[0.0], [3.0]], dtype=dtype), torch.tensor([0.0, 4.0]).to(dtype)
    )
    assert found.tolist() == [[0.0], [1.5]]


def test_nan_is_not_hidden() -> None:
    found = mean_cosine(torch.tensor([[float("nan")]]), torch.tensor([1.0]))
    assert found.isnan().all()
