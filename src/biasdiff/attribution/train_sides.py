"""What an example's gradient is turned into before it meets the probe direction."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from biasdiff.errors import ModelError
from biasdiff.functional.adam import adam_direction, less_direction
from biasdiff.training.checkpoints import AdamState

TrainSide = Callable[[str, Tensor], Tensor]
"""Takes a parameter's saved name and gradients [n, d]; returns directions [n, d]."""

LESS_EPS = 1e-8


def sgd_side(adam: AdamState | None) -> TrainSide:
    """Return the gradient itself."""
    return lambda name, gradients: gradients


def less_side(adam: AdamState | None) -> TrainSide:
    """Return Γ as LESS implements it, see `less_direction`."""
    state = _required(adam, "less")
    return lambda name, gradients: less_direction(
        gradients,
        state.exp_avg[name].flatten(),
        state.exp_avg_sq[name].flatten(),
        betas=state.betas,
        eps=LESS_EPS,
    )


def adam_side(adam: AdamState | None) -> TrainSide:
    """Return the step that Adam would take next on the example alone, see `adam_direction`."""
    state = _required(adam, "adam")
    return lambda name, gradients: adam_direction(
        gradients,
        state.exp_avg[name].flatten(),
        state.exp_avg_sq[name].flatten(),
        step=state.step + 1,
        betas=state.betas,
        eps=state.eps,
    )


TRAIN_SIDES: dict[str, Callable[[AdamState | None], TrainSide]] = {
    "sgd": sgd_side,
    "less": less_side,
    "adam": adam_side,
}
NEEDS_ADAM = {"less", "adam"}


def _required(adam: AdamState | None, side: str) -> AdamState:
    if adam is None:
        raise ModelError(
            f"the adapter carries no Adam state, which the train side {side!r} needs",
            expected="adam.safetensors or a Trainer's optimizer.pt beside the adapter",
            remedy="use 'contrast' with --train-side sgd, or train one with 'biasdiff warmup'",
        )
    return adam
