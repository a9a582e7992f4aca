"""Log-likelihoods of a batch under variants of one model that share its lower layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from biasdiff.data.batching import Batch
from biasdiff.functional.losses import IGNORED
from biasdiff.training.target_losses import target_positions

CHUNK = 1024
"""Target positions that go through the output layer at a time."""
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1
_MISFITS = (ValueError, RuntimeError, TypeError, AttributeError, LookupError)


@dataclass(frozen=True)
class Way:
    """How a batch is computed.

    Attributes:
        split: Layers that all variants share are computed once.
        gather: Only target positions go through the output layer.
    """

    split: bool
    gather: bool


PLAIN = Way(split=False, gather=False)


def decoder_layers(model: Any) -> list[nn.Module]:
    """Return the layers of a causal language model, the lowest first; none if they are not found.

    They are the one list in the decoder with as many members as the config counts layers.
    """
    find = getattr(model, "get_decoder", None)
    config = getattr(model, "config", None)
    if not callable(find) or config is None:
        return []
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = [m for m in find().children() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0]) if len(lists) == 1 else []


class SplitForward:
    """Mean log-likelihoods under several variants of a model, with all that can be shared shared.

    The first variant of a batch runs the whole model; for the others the lower layers answer with
    what they gave then. Embedding, masks, positions, final norm and what follows the output layer
    (scaling, soft-capping) stay the model's own code. The first batch is computed the plain way
    too, and of the ways that agree with it the fastest is taken from then on.

    Args:
        model: Causal language model, in evaluation mode.
        switch: Makes the model the variant of a name.
        names: Of the variants.
        shared: Number of decoder layers, from the first, in which no variant differs.
    """

    def __init__(
        self, model: Any, switch: Callable[[str], None], names: Sequence[str], *, shared: int
    ) -> None:
        self.model, self._switch, self._names = model, switch, tuple(names)
        self._lower = decoder_layers(model)[:shared]
        self.way: Way | None = None
        """The way that was chosen; None before the first batch."""

    def mean_log_probs(self, batch: Batch) -> dict[str, Tensor]:
        """Return (1/T_i) Σ_t log P(label_t | before) under each variant, [n] in float64.

        Args:
            batch: As `biasdiff.data.batching.make_batch` gives it, every example with a target.
        """
        with torch.inference_mode():
            found = self._choose(batch) if self.way is None else self._run(batch, self.way, CHUNK)
            is_target = batch["labels"][:, 1:].ne(IGNORED)
            rows, counts = is_target.nonzero(as_tuple=True)[0], is_target.sum(1)
            sums = torch.zeros(len(counts), dtype=torch.float64, device=counts.device)
            return {name: sums.index_add(0, rows, v.double()) / counts for name, v in found.items()}

    def _choose(self, batch: Batch) -> dict[str, Tensor]:
        plain = self._run(batch, PLAIN, CHUNK)
        targets = int(batch["labels"][:, 1:].ne(IGNORED).sum())
        chunk = min(CHUNK, -(-targets // 2))  # so that a second chunk is tried as well
        for way in self._ways():
            try:
                found = self._run(batch, way, chunk)
            except _MISFITS:
                continue
            if all(_agree(found[name], plain[name], self.model.dtype) for name in plain):
                self.way = way
                return found
        self.way = PLAIN
        return plain

    def _ways(self) -> list[Way]:
        splits = (True, False) if self._lower else (False,)
        return [Way(s, g) for s in splits for g in (True, False) if Way(s, g) != PLAIN]

    def _run(self, batch: Batch, way: Way, chunk: int) -> dict[str, Tensor]:
        """Return log P of every target, [targets] in the order of rows and places, by variant."""
        compute = self._gathered if way.gather else self._whole
        found: dict[str, Tensor] = {}
        lower: list[Any] = []
        for name in self._names:
            self._switch(name)
            if way.split and found:
                with _answering(self._lower, lower[-1]):
                    found[name] = compute(batch, chunk)
            elif way.split:
                with _outputs_of(self._lower[-1], lower):
                    found[name] = compute(batch, chunk)
            else:
                found[name] = compute(batch, chunk)
        return found

    def _logits(self, batch: Batch) -> Tensor:
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
        logits: Tensor = self.model(**inputs, use_cache=False).logits
        return logits

    def _whole(self, batch: Batch, chunk: int) -> Tensor:
        logits = self._logits(batch)
        (rows, places), targets = target_positions(batch["labels"])
        parts = [slice(start, start + chunk) for start in range(0, len(rows), chunk)]
        return torch.cat([_log_probs(logits[rows[p], places[p]], targets[p]) for p in parts])

    def _gathered(self, batch: Batch, chunk: int) -> Tensor:
        """Pass only target positions through the output layer, a chunk at a time.

        The first chunk belongs to the forward pass itself. For each further one the model runs
        again with its decoder answering from memory, so that only the output layer and what follows
        it are computed.
        """
        decoder, output = self.model.get_decoder(), self.model.get_output_embeddings()
        if output is None or decoder is self.model:
            raise ValueError("the model has no decoder and output layer of its own.")
        (rows, places), targets = target_positions(batch["labels"])
        hidden: list[Tensor] = []

        def select(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden.append(arguments[0][rows, places])
            return (hidden[0][None, :chunk], *arguments[1:])

        outputs: list[Any] = []
        with _before(output, select), _outputs_of(decoder, outputs):
            found = [_log_probs(self._logits(batch)[0], targets[:chunk])]
        for start in range(chunk, len(rows), chunk):
            part = hidden[0][None, start : start + chunk]
            with (
                _answering([decoder], outputs[-1]),
                _before(output, lambda _, arguments, part=part: (part, *arguments[1:])),
            ):
                found.append(_log_probs(self._logits(batch)[0], targets[start : start + chunk]))
        return torch.cat(found)


def _agree(found: Tensor, plain: Tensor, dtype: torch.dtype) -> bool:
    tolerance = _TOLERANCES.get(dtype, _HALF_TOLERANCE)
    return found.shape == plain.shape and torch.allclose(
        found, plain, atol=tolerance, rtol=tolerance, equal_nan=True
    )


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax(logits)[target], [n], in float32 or better."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return -cross_entropy(logits, targets, reduction="none")


@contextmanager
def _before(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _outputs_of(module: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """Keep what the module returns while the block runs."""
    handle = module.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _answering(modules: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Let modules return ``output`` in place of computing anything while the block runs."""
    with ExitStack() as stack:
        for module in modules:
            before = module.__dict__.get("forward")  # of a library that has wrapped the module
            stack.callback(_put_back, module, before)
            module.forward = lambda *_, **__: output
        yield


def _put_back(module: nn.Module, forward: Any) -> None:
    if forward is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = forward
