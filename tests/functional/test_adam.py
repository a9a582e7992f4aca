from __future__ import annotations

import pytest
import torch

from biasdiff.functional.adam import adam_direction, less_direction


def random_state(size: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(3, size, generator=generator, dtype=torch.float64)
    return draw[0], draw[1], draw[2].square()


@pytest.mark.parametrize("optimizer_type", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("step", [0, 1, 7, 500])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_adam_direction_is_a_real_optimizer_step(
    optimizer_type: type[torch.optim.Optimizer], step: int, betas: tuple[float, float]
) -> None:
    gradient, exp_avg, exp_avg_sq = random_state()
    if step == 0:
        exp_avg, exp_avg_sq = torch.zeros_like(exp_avg), torch.zeros_like(exp_avg_sq)
    rate, eps = 0.01, 1e-6
    weight = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = optimizer_type([weight], lr=rate, betas=betas, eps=eps, weight_decay=0.0)
    optimizer.state[weight] = {
        "step": torch.tensor(float(step)),
        "exp_avg": exp_avg.clone(),
        "exp_avg_sq": exp_avg_sq.clone(),
    }
    weight.grad = gradient.clone()
    optimizer.step()
    direction = adam_direction(
        gradient[None], exp_avg, exp_avg_sq, step=step + 1, betas=betas, eps=eps
    )
    torch.testing.assert_close(-weight.detach() / rate, direction[0], rtol=1e-12, atol=1e-12)


def test_adam_direction_after_a_trained_history() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        (weight.square() * torch.rand(5, dtype=torch.float64)).sum().backward()
        optimizer.step()
    state = {k: v.clone() for k, v in optimizer.state[weight].items()}
    before = weight.detach().clone()
    weight.grad = torch.randn(5, dtype=torch.float64)
    optimizer.step()
    direction = adam_direction(
        weight.grad[None], state["exp_avg"], state["exp_avg_sq"], step=int(state["step"]) + 1
    )
    torch.testing.assert_close((before - weight.detach()) / 0.1, direction[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_less_direction_is_its_formula(eps: float) -> None:
    gradient, m, v = random_state()
    rows = torch.stack([gradient, -2 * gradient, torch.zeros_like(gradient)])
    expected = torch.stack(
        [(0.9 * m + 0.1 * g) / torch.sqrt(0.999 * v + 0.001 * g**2 + eps) for g in rows]
    )
    torch.testing.assert_close(less_direction(rows, m, v, eps=eps), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("direction", [less_direction, lambda *a: adam_direction(*a, step=3)])
def test_rows_are_independent_and_inputs_unchanged(direction: object) -> None:
    gradient, m, v = random_state()
    rows = torch.stack([gradient, 3 * gradient])
    copies = [t.clone() for t in (rows, m, v)]
    both = direction(rows, m, v)  # type: ignore[operator]
    torch.testing.assert_close(both[1], direction(rows[1:], m, v)[0])  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(copies, (rows, m, v), strict=True))


@pytest.mark.parametrize("step", [0, -1])
def test_step_below_one_is_refused(step: int) -> None:
    gradient, m, v = random_state()
    with pytest.raises(ValueError, match=rf"at least 1, got {step}: pass the checkpoint's count"):
        adam_direction(gradient[None], m, v, step=step)
