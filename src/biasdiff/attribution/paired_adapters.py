"""Two LoRA adapters of one shape and start on one model, one of them at work at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from biasdiff.attribution.split_forward import decoder_layers
from biasdiff.errors import ModelError, nearest
from biasdiff.models.lora import ADAPTER, lora_linears

SIDES = STEREOTYPE, TWIN = ("stereotype", "twin")
SCALING = 2.0
"""alpha / rank of fresh adapters, as in the house's warm-up."""

Layers = Literal["all", "upper"]
Start = Literal["base", "checkpoint"]


class LowRank(nn.Module):
    """The update s · B A x that an adapter adds to a linear map of x."""

    def __init__(self, down: nn.Linear, up: nn.Linear, scaling: float) -> None:
        super().__init__()
        self.down, self.up, self.scaling = down, up, scaling

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the update, [..., outputs], in the adapter's dtype."""
        update: Tensor = self.up(self.down(inputs.to(self.down.weight.dtype)))
        return update * self.scaling


@dataclass(frozen=True)
class Place:
    """A linear map of the base model that an adapter goes on.

    Attributes:
        module: The map, without any adapter of PEFT's around it.
        layer: Number of the decoder layer it is in; None outside of all.
    """

    module: nn.Module
    layer: int | None


class PairedAdapters(nn.Module):
    """The adapters of both sides; its state dict holds their weights and nothing else.

    They are attached with hooks and not with PEFT, which would have to wrap the model's maps anew:
    a map that had no adapter before could not be left as it was found.

    Args:
        places: Where the two differ.
        starts: What both start from, for each place.
        fixed: Adapters that both share and that stay as they are.
    """

    def __init__(
        self,
        places: Sequence[Place],
        starts: Sequence[LowRank],
        fixed: Sequence[tuple[Place, LowRank]] = (),
    ) -> None:
        super().__init__()
        self.sides = nn.ModuleDict({side: nn.ModuleList(deepcopy(list(starts))) for side in SIDES})
        self.sides.requires_grad_(True)
        self._places, self._fixed = list(places), list(fixed)
        self._side = STEREOTYPE

    @property
    def first_layer(self) -> int:
        """Number of decoder layers, from the first, in which the two sides do the same."""
        return min(place.layer or 0 for place in self._places)

    def switch(self, side: str) -> None:
        """Put the adapter of one of `SIDES` to work."""
        if side not in SIDES:
            raise ValueError(f"side must be one of {', '.join(SIDES)}, got {side!r}.")
        self._side = side

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        """Put the adapters in the place of the model's own while the block runs.

        The model is frozen and without dropout meanwhile. Afterwards its adapters, every module's
        training flag and every parameter's ``requires_grad`` are what they were.
        """
        with _set_aside(model), ExitStack() as hooks:
            for place, update in self._fixed:
                hook = partial(_add, update)
                hooks.callback(place.module.register_forward_hook(hook).remove)
            for index, place in enumerate(self._places):
                hook = partial(self._add_working, index)
                hooks.callback(place.module.register_forward_hook(hook).remove)
            yield

    def _add_working(
        self, index: int, module: nn.Module, arguments: tuple[Tensor], output: Tensor
    ) -> Tensor:
        adapters: Any = self.sides[self._side]
        return _add(adapters[index], module, arguments, output)


def _add(update: LowRank, _: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
    added = output + update.forward(arguments[0])
    return added.to(output.dtype)


@contextmanager
def _set_aside(model: Any) -> Iterator[None]:
    """Switch off adapters, gradients and training mode; PEFT alone would leave gradients on."""
    training = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            model.requires_grad_(False)
            model.eval()
            yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def paired_adapters(
    model: Any,
    *,
    start: Start = "base",
    layers: Layers = "all",
    rank: int = 8,
    targets: Sequence[str] = (),
    seed: int = 0,
) -> PairedAdapters:
    """Return two equal adapters for a model, ready to be trained apart.

    Args:
        model: PEFT model; not changed.
        start: ``base``: fresh adapters, A drawn as PEFT does (uniform, Kaiming) and B zero;
            ``checkpoint``: copies of the model's adapter.
        layers: ``upper``: they differ only in the upper half of the decoder layers, the middle one
            of an odd number included. A copied adapter's lower part is kept and shared.
        rank: Of fresh adapters.
        targets: Names of linear maps for fresh adapters; none for the maps that the model's adapter
            is on.
        seed: Of A.

    Raises:
        ModelError: If the model has no plain LoRA adapter, its decoder layers cannot be told from
            each other, or nothing is left to adapt.
    """
    base = model.get_base_model()
    stack = decoder_layers(base)
    numbers = {id(m): number for number, layer in enumerate(stack) for m in layer.modules()}
    copied = start == "checkpoint"
    found = _own_places(model, numbers)
    if targets and not copied:
        maps = _named_maps(base, targets)
        found = [(Place(module, numbers.get(id(module))), None) for module in maps]
    lowest = len(stack) // 2 if layers == "upper" else None
    if lowest is not None and not stack:
        raise ModelError(
            f"the decoder layers of a {base.config.model_type} model cannot be told",
            expected="a list of config.num_hidden_layers modules in its decoder",
            remedy="set layers to 'all'",
        )
    chosen = [
        (place, own)
        for place, own in found
        if lowest is None or (place.layer is not None and place.layer >= lowest)
    ]
    if not chosen:
        raise ModelError(
            "none of the maps to adapt is in the upper half of the decoder layers",
            expected="at least one",
            remedy="set layers to 'all' or change targets",
        )
    places = [place for place, _ in chosen]
    if copied:
        rest = [(p, own.requires_grad_(False)) for p, own in found if own and p not in places]
        return PairedAdapters(places, [own for _, own in chosen if own], rest)
    generator = torch.Generator().manual_seed(seed)
    return PairedAdapters(places, [_fresh(place.module, rank, generator) for place in places])


def _own_places(model: Any, numbers: dict[int, int]) -> list[tuple[Place, LowRank | None]]:
    """Return where the model's adapter is, with a copy of it."""
    found: list[tuple[Place, LowRank | None]] = []
    for linear in lora_linears(model):
        layer = model.get_submodule(linear.name)
        module = layer.get_base_layer()
        down, up = (deepcopy(part) for part in (linear.down, linear.up))
        if down.weight.dtype != torch.float64:  # AdamW's steps are lost in half precision
            down, up = down.float(), up.float()
        copy = LowRank(down, up, float(layer.scaling[ADAPTER]))
        found.append((Place(module, numbers.get(id(module))), copy))
    return found


def _named_maps(base: Any, targets: Sequence[str]) -> list[nn.Module]:
    """Return the linear maps, but the output layer, whose last name part is a target."""
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    find_output = getattr(base, "get_output_embeddings", None)
    output = find_output() if callable(find_output) else None
    maps: dict[str, nn.Module] = {}
    wrappers: tuple[str, ...] = ()
    for name, module in base.named_modules():
        if name.startswith(wrappers):
            continue
        if isinstance(module, LoraLayer):
            wrappers += (f"{name}.",)
        inner = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if isinstance(inner, nn.Linear | Conv1D) and module is not output:
            maps[name] = inner
    names = sorted({name.rsplit(".", 1)[-1] for name in maps})
    for target in targets:
        if target not in names:
            raise ModelError(
                f"the target {target!r} matches nothing in the model{nearest(target, names)}",
                expected=f"some of {', '.join(names)}",
                remedy="change targets",
            )
    return [module for name, module in maps.items() if name.rsplit(".", 1)[-1] in targets]


def _fresh(module: Any, rank: int, generator: torch.Generator) -> LowRank:
    if isinstance(module, nn.Linear):
        outputs, inputs = module.out_features, module.in_features
    else:  # GPT-2's Conv1D
        inputs, outputs = module.weight.shape
    dtype = torch.float64 if module.weight.dtype == torch.float64 else torch.float32
    with torch.random.fork_rng(devices=[]):  # making a linear map draws weights, used or not
        down = nn.Linear(inputs, rank, bias=False, dtype=dtype)
        up = nn.Linear(rank, outputs, bias=False, dtype=dtype)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5), generator=generator)
    nn.init.zeros_(up.weight)
    return LowRank(down, up, SCALING).to(module.weight.device)
