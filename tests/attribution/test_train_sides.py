from __future__ import annotations

import torch

from biasdiff.attribution.train_sides import TRAIN_SIDES
from biasdiff.training.checkpoints import AdamState


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


STATE = AdamState(
    exp_avg={"w": draw(2, 3), "other": torch.zeros(1)},
    exp_avg_sq={"w": draw(2, 3).square(), "other": torch.zeros(1)},
    step=6,
    betas=(0.8, 0.95),
    eps=1e-3,
)


def test_the_adam_side_is_the_next_step_of_the_stored_optimizer() -> None:
    gradients = draw(4, 6, 1)[:, :, 0]
    found = TRAIN_SIDES["adam"](STATE)("w", gradients)
    for gradient, direction in zip(gradients, found, strict=True):
        weight = torch.nn.Parameter(torch.zeros(2, 3))
        optimizer = torch.optim.Adam([weight], lr=1.0, betas=STATE.betas, eps=STATE.eps)
        optimizer.state[weight] = {
            "step": torch.tensor(float(STATE.step)),
            "exp_avg": STATE.exp_avg["w"].clone(),
            "exp_avg_sq": STATE.exp_avg_sq["w"].clone(),
        }
        weight.grad = gradient.view(2, 3)
        optimizer.step()
        torch.testing.assert_close(direction, -weight.detach().flatten())


def test_the_less_side_takes_the_stored_betas_and_less_own_eps() -> None:
    gradients = draw(4, 6, 1)[:, :, 0]
    m, v = STATE.exp_avg["w"].flatten(), STATE.exp_avg_sq["w"].flatten()
    expected = (0.8 * m + 0.2 * gradients) / (0.95 * v + 0.05 * gradients**2 + 1e-8).sqrt()
    torch.testing.assert_close(TRAIN_SIDES["less"](STATE)("w", gradients), expected)
