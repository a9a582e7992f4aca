"""LoRA adapters: where they go, how they are made and loaded, how their parameters are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from biasdiff.errors import ModelError

ADAPTER = "default"


@dataclass(frozen=True)
class LoraSettings:
    """Shape of an adapter.

    Attributes:
        rank: r.
        alpha: The update is scaled by alpha / rank.
        dropout: On the adapter's input while training.
        targets: Names of the linear maps to adapt; empty for the architecture's default.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoraLinear:
    """One adapted linear map: y = W x + scaling · B A x.

    Attributes:
        name: Of the adapted module, as in the adapter's saved keys.
        down: A, [rank, inputs].
        up: B, [outputs, rank].
    """

    name: str
    down: nn.Linear
    up: nn.Linear


def linear_names(model: nn.Module) -> list[str]:
    """Return the distinct last name parts of all linear maps but the output layer."""
    from transformers.pytorch_utils import Conv1D

    find_output = getattr(model, "get_output_embeddings", None)
    output = find_output() if callable(find_output) else None
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }
    return sorted(names)


def default_targets(model: Any) -> list[str]:
    """Return q_proj and v_proj where they exist, else PEFT's default for the architecture.

    Raises:
        ModelError: If neither names a linear map of the model.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    names = linear_names(model)
    if {"q_proj", "v_proj"} <= set(names):
        return ["q_proj", "v_proj"]
    found = [n for n in DEFAULTS.get(model.config.model_type, []) if n in names]
    if not found:
        raise ModelError(
            f"no default LoRA targets for a {model.config.model_type} model",
            expected=f"targets among {', '.join(names)}",
            remedy="name them in lora.targets",
        )
    return found


def add_adapter(model: Any, settings: LoraSettings, *, seed: int) -> Any:
    """Wrap a base model with a fresh LoRA adapter, its A drawn from ``seed`` and its B zero.

    Raises:
        ModelError: If a target matches no linear map of the model; the candidates are listed.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = list(settings.targets) or default_targets(model)
    names = linear_names(model)
    missing = [
        t for t in targets if t not in names and not any(n == t for n, _ in model.named_modules())
    ]
    if missing:
        raise ModelError(
            f"LoRA targets {', '.join(missing)} match nothing in the model",
            expected=f"some of {', '.join(names)}",
            remedy="change lora.targets",
        )
    transposed = any(
        isinstance(m, Conv1D) for n, m in model.named_modules() if n.endswith(tuple(targets))
    )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def load_adapter(model: Any, folder: str | Path, *, trainable: bool = False) -> Any:
    """Wrap a base model with an adapter saved by PEFT.

    Raises:
        ModelError: If the folder holds no adapter, or one that does not fit the model.
    """
    from peft import PeftModel

    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} has no adapter_config.json",
            expected="a folder written by PEFT's save_pretrained",
            remedy="check the path",
        )
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(
            f"the adapter in {folder} does not fit the model ({str(error).splitlines()[0]})",
            expected="an adapter of this base model",
            remedy="name the base model it was trained on",
        ) from error
    odd = _names_without_partner(adapted, folder)
    if odd:  # PEFT only warns of these, and leaves them at their random start or drops them
        raise ModelError(
            f"the adapter in {folder} does not fit the model ({len(odd)} weights without a "
            f"counterpart, for example {odd[0]})",
            expected="an adapter of this base model",
            remedy="name the base model it was trained on",
        )
    return adapted


def _names_without_partner(model: nn.Module, folder: Path) -> list[str]:
    file = folder / "adapter_model.safetensors"
    if not file.is_file():  # an adapter_model.bin of an old PEFT
        return []
    with safe_open(file, "pt") as tensors:
        saved = {name for name in tensors.keys() if ".lora_" in name}  # noqa: SIM118
    loaded = {canonical_name(n) for n, _ in model.named_parameters() if ".lora_" in n}
    return sorted(saved ^ loaded)


def lora_linears(model: nn.Module) -> list[LoraLinear]:
    """Return the adapted linear maps of a PEFT model, in the model's order.

    Raises:
        ModelError: If there are none, or one is of a kind whose per-example gradient is not the
            plain outer product (embeddings, convolutions, DoRA).
    """
    from peft.tuners.lora import LoraLayer

    found = []
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        down, up = (dict(part.items()).get(ADAPTER) for part in (module.lora_A, module.lora_B))
        variant = ADAPTER in module.lora_variant
        if not isinstance(down, nn.Linear) or not isinstance(up, nn.Linear) or variant:
            raise ModelError(
                f"{name} is not a plain LoRA linear map",
                expected="LoRA on linear maps, without DoRA or other variants",
                remedy="train an adapter with such targets only",
            )
        found.append(LoraLinear(name, down, up))
    if not found:
        raise ModelError(
            "the model has no LoRA adapter",
            expected="a PEFT model",
            remedy="pass an adapter or run 'biasdiff warmup' first",
        )
    return found


def lora_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield LoRA weights under the names of their saved keys, in the model's order.

    Attribution, checkpoints and Adam moments all use these names.
    """
    for linear in lora_linears(model):
        yield f"{linear.name}.lora_A.weight", linear.down.weight
        yield f"{linear.name}.lora_B.weight", linear.up.weight


def canonical_name(parameter: str) -> str:
    """Return a PEFT parameter name without its adapter's name, as PEFT saves it."""
    return parameter.replace(f".{ADAPTER}.", ".")


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter as PEFT does, safetensors and JSON only.

    PEFT writes its set of targets in an order that changes from process to process; here the same
    adapter gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder))
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
