"""What an example's gradient is turned into before it meets the probe direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from biasdiff.errors import ModelError
from biasdiff.functional.adam import adam_direction, less_direction, preconditioned_gradient
from biasdiff.training.checkpoints import AdamState

LESS_EPS = 1e-8
Direction = Callable[[str, Tensor], Tensor]
"""Takes a parameter's saved name and gradients [n, d]; returns directions [n, d]."""


@dataclass(frozen=True)
class TrainSide:
    """A direction Γ, and what of it comes from the first moment.

    Attributes:
        direction: Γ(g).
        first_moment: Γ₀(g), the part that the first moment adds, with the denominator at its value
            for g; None for a side without it. The rest is elementwise proportional to g.
    """

    direction: Direction
    first_moment: Direction | None = None

    def __call__(self, name: str, gradients: Tensor) -> Tensor:
        """Return Γ, [n, d]."""
        return self.direction(name, gradients)

    def linear_part(self, name: str, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return slope D and offset Γ₀ of Γ(g) = Γ₀ + D g with the denominator held, [n, d] each.

        D is 0 where g is: there is nothing of the gradient to share out.
        """
        whole = self.direction(name, gradients)
        offset = torch.zeros_like(whole)
        if self.first_moment is not None:
            offset = self.first_moment(name, gradients)
        return torch.where(gradients != 0, (whole - offset) / gradients, 0.0), offset


def sgd_side(adam: AdamState | None) -> TrainSide:
    """Return the gradient itself."""
    return TrainSide(lambda name, gradients: gradients)


def less_side(adam: AdamState | None) -> TrainSide:
    """Return Γ as LESS implements it, see `less_direction`."""
    state = _required(adam, "less")

    def direction(name: str, gradients: Tensor) -> Tensor:
        return less_direction(
            gradients,
            state.exp_avg[name].flatten(),
            state.exp_avg_sq[name].flatten(),
            betas=state.betas,
            eps=LESS_EPS,
        )

    def first_moment(name: str, gradients: Tensor) -> Tensor:
        beta1, beta2 = state.betas
        second = state.exp_avg_sq[name].flatten()
        root = (beta2 * second + (1 - beta2) * gradients.square() + LESS_EPS).sqrt()
        return beta1 * state.exp_avg[name].flatten() / root

    return TrainSide(direction, first_moment)


def adam_side(adam: AdamState | None) -> TrainSide:
    """Return the step that Adam would take next on the example alone, see `adam_direction`."""
    state = _required(adam, "adam")

    def direction(name: str, gradients: Tensor) -> Tensor:
        return adam_direction(
            gradients,
            state.exp_avg[name].flatten(),
            state.exp_avg_sq[name].flatten(),
            step=state.step + 1,
            betas=state.betas,
            eps=state.eps,
        )

    def first_moment(name: str, gradients: Tensor) -> Tensor:
        (beta1, beta2), step = state.betas, state.step + 1
        second = beta2 * state.exp_avg_sq[name].flatten() + (1 - beta2) * gradients.square()
        root = (second / (1 - beta2**step)).sqrt() + state.eps
        return beta1 * state.exp_avg[name].flatten() / (1 - beta1**step) / root

    return TrainSide(direction, first_moment)


def adam_v_side(adam: AdamState | None) -> TrainSide:
    """Return the gradient on Adam's scale, without the first moment."""
    state = _required(adam, "adam_v")
    return TrainSide(
        lambda name, gradients: preconditioned_gradient(
            gradients, state.exp_avg_sq[name].flatten(), beta2=state.betas[1], eps=state.eps
        )
    )


TRAIN_SIDES: dict[str, Callable[[AdamState | None], TrainSide]] = {
    "sgd": sgd_side,
    "less": less_side,
    "adam": adam_side,
    "adam_v": adam_v_side,
}
NEEDS_ADAM = {"less", "adam", "adam_v"}


def _required(adam: AdamState | None, side: str) -> AdamState:
    if adam is None:
        raise ModelError(
            f"the adapter carries no Adam state, which the train side {side!r} needs",
            expected="adam.safetensors or a Trainer's optimizer.pt beside the adapter",
            remedy="use 'contrast' with --train-side sgd, or train one with 'biasdiff warmup'",
        )
    return adam
