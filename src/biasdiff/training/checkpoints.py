"""Checkpoints: adapter weights, Adam moments by parameter name, and the step count."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from biasdiff.errors import ModelError
from biasdiff.models.lora import canonical_name, lora_parameters, save_adapter

ADAM_FILE = "adam.safetensors"
INFO_FILE = "checkpoint.json"
TRAINER_FILE = "optimizer.pt"
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class AdamState:
    """Adam's memory of the gradients it has seen.

    Attributes:
        exp_avg: First moment of each parameter, by saved name, in the parameter's shape.
        exp_avg_sq: Second moment, likewise.
        step: Optimizer steps taken so far.
        betas: Decay rates.
        eps: Of the denominator.
    """

    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    step: int
    betas: tuple[float, float]
    eps: float


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint records beside its tensors.

    Attributes:
        epoch: Epochs finished.
        step: Optimizer steps taken.
        betas: Adam's decay rates.
        eps: Adam's denominator term.
        mean_learning_rate: Over the steps of this epoch, the weight of the checkpoint in Eq. 5.
        loss_average: What the trainer averaged a batch's loss over (attribution averages over the
            tokens of each example).
        max_grad_norm: At which the trainer clipped (attribution does not clip); 0 for no clipping.
    """

    epoch: int
    step: int
    betas: tuple[float, float]
    eps: float
    mean_learning_rate: float
    loss_average: str
    max_grad_norm: float


def live_adam_state(model: Any, optimizer: torch.optim.Optimizer) -> AdamState:
    """Copy the moments out of a running optimizer, by parameter name."""
    state = optimizer.state
    named = {canonical_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    group = optimizer.param_groups[0]
    steps = {int(state[p]["step"]) for p in named.values()}
    return AdamState(
        exp_avg={n: state[p]["exp_avg"].detach().cpu().clone() for n, p in named.items()},
        exp_avg_sq={n: state[p]["exp_avg_sq"].detach().cpu().clone() for n, p in named.items()},
        step=max(steps),
        betas=(float(group["betas"][0]), float(group["betas"][1])),
        eps=float(group["eps"]),
    )


def save_checkpoint(folder: Path, model: Any, adam: AdamState, info: CheckpointInfo) -> None:
    """Write adapter, moments and info into ``folder``, replacing it whole."""
    work = folder.with_name(folder.name + ".part")
    shutil.rmtree(work, ignore_errors=True)
    save_adapter(model, work)
    tensors = {f"exp_avg/{n}": t.contiguous() for n, t in adam.exp_avg.items()}
    tensors |= {f"exp_avg_sq/{n}": t.contiguous() for n, t in adam.exp_avg_sq.items()}
    save_file(tensors, work / ADAM_FILE)
    (work / INFO_FILE).write_text(json.dumps(asdict(info), indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)


def load_info(folder: Path) -> CheckpointInfo:
    """Read what a checkpoint records beside its tensors."""
    record = json.loads((folder / INFO_FILE).read_text())
    return CheckpointInfo(**(record | {"betas": tuple(record["betas"])}))


def load_adam_state(folder: Path, model: Any) -> AdamState | None:
    """Read the Adam moments stored beside an adapter, or None where there are none.

    Besides our own file, a Trainer's ``optimizer.pt`` is understood: it is read with
    ``weights_only`` (nothing in it is executed), and its entries, which carry numbers instead of
    names, are matched to the adapter's parameters in order and by shape. The moments come to the
    adapter's device.

    Args:
        folder: The adapter's folder.
        model: The PEFT model that the moments belong to.

    Raises:
        ModelError: If the file cannot be read, or moments and adapter do not fit each other.
    """
    shapes = {name: parameter.shape for name, parameter in lora_parameters(model)}
    device = next(parameter.device for _, parameter in lora_parameters(model))
    path = next((p for p in (folder / ADAM_FILE, folder / TRAINER_FILE) if p.is_file()), None)
    if path is None:
        return None
    try:
        if path.name == ADAM_FILE:
            adam = _from_checkpoint(path, device)
        else:
            adam = _from_trainer(path, list(shapes), device)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{path} cannot be read ({type(error).__name__}: {reason})",
            expected="Adam moments as 'biasdiff warmup' or Trainer writes them, tensors only",
            remedy="restore the file from its training run, or use 'contrast', which needs none",
        ) from error
    for moments in (adam.exp_avg, adam.exp_avg_sq):
        found = {name: tensor.shape for name, tensor in moments.items()}
        if found != shapes:
            odd = min(name for name, _ in set(found.items()) ^ set(shapes.items()))
            raise ModelError(
                f"the Adam moments in {folder} do not fit the adapter, for example at {odd}",
                expected="moments of the same parameters and shapes",
                remedy="use adapter and moments of one checkpoint",
            )
    return adam


def _from_checkpoint(path: Path, device: torch.device) -> AdamState:
    tensors, info = load_file(path, device=str(device)), load_info(path.parent)
    moments = {
        kind: {n.split("/", 1)[1]: t for n, t in tensors.items() if n.startswith(f"{kind}/")}
        for kind in ("exp_avg", "exp_avg_sq")
    }
    return AdamState(moments["exp_avg"], moments["exp_avg_sq"], info.step, info.betas, info.eps)


def _from_trainer(path: Path, names: list[str], device: torch.device) -> AdamState:
    record = torch.load(path, map_location=device, weights_only=True)
    group = record["param_groups"][0]
    order = [index for g in record["param_groups"] for index in g["params"]]
    if len(order) != len(names) or any("exp_avg" not in record["state"].get(i, {}) for i in order):
        raise ModelError(
            f"{path} holds {len(order)} parameters",
            expected=f"Adam moments of the adapter's {len(names)} parameters",
            remedy="use the optimizer file saved with this adapter",
        )
    states = dict(zip(names, (record["state"][index] for index in order), strict=True))
    return AdamState(
        exp_avg={n: s["exp_avg"] for n, s in states.items()},
        exp_avg_sq={n: s["exp_avg_sq"] for n, s in states.items()},
        step=int(states[names[0]]["step"]),
        betas=(float(group["betas"][0]), float(group["betas"][1])),
        eps=float(group["eps"]),
    )
