"""Which parameters influence is measured in: an adapter's, a pattern's, or all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn import Parameter

from biasdiff.errors import ConfigError
from biasdiff.models.lora import lora_linears

LORA, ALL = "lora", "all"


@dataclass(frozen=True)
class WatchedMap:
    """A parameter of a linear map, whose per-example gradients come from hooks.

    Attributes:
        name: Of the parameter, as it is saved.
        module: The map: y = W x + b, or y = x W + b (GPT-2's Conv1D).
        kind: ``weight``; ``transposed``, the weight stored [inputs, outputs]; or ``bias``.
        size: Number of its entries.
    """

    name: str
    module: nn.Module
    kind: Literal["weight", "transposed", "bias"]
    size: int


@dataclass(frozen=True)
class ChosenParameters:
    """What influence is measured in.

    Attributes:
        maps: Parameters of linear maps, for whole batches at once.
        others: Everything else (norms, embeddings, tied output layers), by name. Where there are
            any, examples go through the model one at a time, for all parameters.
    """

    maps: tuple[WatchedMap, ...]
    others: Mapping[str, Parameter]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of entries of each parameter, by name."""
        found = {watched.name: watched.size for watched in self.maps}
        return found | {name: p.numel() for name, p in self.others.items()}


def lora_maps(model: nn.Module) -> ChosenParameters:
    """Return the adapter's parameters, in the model's order.

    Raises:
        ModelError: As `biasdiff.models.lora.lora_linears`.
    """
    maps = []
    for linear in lora_linears(model):
        for kind, module in (("lora_A", linear.down), ("lora_B", linear.up)):
            name = f"{linear.name}.{kind}.weight"
            maps.append(WatchedMap(name, module, "weight", module.weight.numel()))
    return ChosenParameters(tuple(maps), {})


def chosen_parameters(model: Any, which: str = LORA) -> ChosenParameters:
    r"""Return the parameters to measure influence in.

    Args:
        model: PEFT model, or any other unless ``which`` is ``lora``.
        which: ``lora``: the adapter's; ``all``: every parameter of the model itself, at the weights
            that the adapter makes of them; or a regular expression that is searched in their names
            (``layers\.2[0-9]\..*proj\.weight``).

    Raises:
        ConfigError: If the expression is none, or matches nothing; some names are listed.
    """
    if which == LORA:
        return lora_maps(model)
    try:
        pattern = re.compile("" if which == ALL else which)
    except re.error as error:
        raise ConfigError(
            f"parameters is {which!r}, which is no regular expression ({error})",
            expected="lora, all or a regular expression",
            remedy="mend attribution.parameters",
        ) from error
    own = {base_name(n): p for n, p in model.named_parameters() if ".lora_" not in n}
    found = {name: p for name, p in own.items() if pattern.search(name)}
    if not found:
        raise ConfigError(
            f"parameters is {which!r}, which matches no parameter of the model",
            expected=f"something that matches, for example, {', '.join(list(own)[:4])}",
            remedy="mend attribution.parameters",
        )
    places = _linear_places(model)
    maps = {name: _watched(name, places[id(p)], p) for name, p in found.items() if id(p) in places}
    others = {name: p for name, p in found.items() if name not in maps}
    return ChosenParameters(tuple(maps.values()), others)


def base_name(parameter: str) -> str:
    """Return the name a parameter has in the model without an adapter."""
    return parameter.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _linear_places(model: nn.Module) -> dict[int, tuple[nn.Module, str]]:
    """Return linear map and attribute of every parameter that belongs to one and nothing else."""
    from transformers.pytorch_utils import Conv1D

    places: dict[int, tuple[nn.Module, str]] = {}
    shared: set[int] = set()
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if not isinstance(module, nn.Linear | Conv1D) or id(parameter) in places:
                shared.add(id(parameter))
            else:
                places[id(parameter)] = (module, attribute)
    return {key: place for key, place in places.items() if key not in shared}


def _watched(name: str, place: tuple[nn.Module, str], parameter: Parameter) -> WatchedMap:
    module, attribute = place
    if attribute == "bias":
        return WatchedMap(name, module, "bias", parameter.numel())
    kind: Literal["weight", "transposed"] = (
        "weight" if isinstance(module, nn.Linear) else "transposed"
    )
    return WatchedMap(name, module, kind, parameter.numel())
