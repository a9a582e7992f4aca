"""One vector for a text: a layer's hidden states at its target tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from biasdiff.attribution.material import Material
from biasdiff.attribution.scores import Floats
from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.errors import NonFiniteError
from biasdiff.functional.losses import IGNORED
from biasdiff.options import ESTIMATORS, Options, checked_options, wrong_option
from biasdiff.progress import task

POOLINGS = ("mean", "last")


@dataclass(frozen=True)
class Representation:
    """Which hidden states stand for a text; the options of the baselines that use them.

    Attributes:
        layer: 0 for the input embeddings, k for the states after block k, -1 for the last, which
            with most architectures are those after the final norm; None for the middle block.
        pooling: ``mean`` over the target tokens, or the ``last`` target token. The start token is
            no target, which matters: its states are the same for all texts, and by far the longest.
    """

    layer: int | None = None
    pooling: str = "mean"

    def place(self, model: Any, name: str) -> int:
        """Return the layer's number in a model.

        Raises:
            ConfigError: If the model has fewer; ``name`` is the estimator's.
        """
        blocks = int(model.config.get_text_config().num_hidden_layers)
        if self.layer is None:
            return (blocks + 1) // 2
        if self.layer > blocks:
            expected = f"-1, or 0 to {blocks} for this model"
            raise wrong_option(name, "layer", self.layer, expected, section=ESTIMATORS)
        return blocks if self.layer == -1 else self.layer


def representation_of(given: Options, name: str) -> Representation:
    """Check the options of the estimator ``name``.

    Raises:
        ConfigError: If one is unknown or out of range.
    """
    options = checked_options(given, name, asdict(Representation()), section=ESTIMATORS)
    layer, pooling = options["layer"], options["pooling"]
    if layer is not None and (type(layer) is not int or layer < -1):
        expected = "nothing for the middle, -1 for the last, or 0 and up"
        raise wrong_option(name, "layer", layer, expected, section=ESTIMATORS)
    if pooling not in POOLINGS:
        raise wrong_option(name, "pooling", pooling, " or ".join(POOLINGS), section=ESTIMATORS)
    return Representation(layer, pooling)


def chosen_states(material: Material, name: str) -> Callable[..., Floats]:
    """Return `pooled_states` of the material's model with the options of the estimator ``name``.

    Raises:
        ConfigError: If an option is unknown or out of range for the model.
    """
    chosen = representation_of(material.options, name)
    return partial(
        pooled_states,
        material.model,
        layer=chosen.place(material.model, name),
        pooling=chosen.pooling,
        max_tokens=material.max_tokens,
    )


def pooled_states(
    model: Any,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    *,
    layer: int,
    pooling: str,
    max_tokens: int,
    reduce: Callable[[Floats], Floats] = lambda states: states,
    description: str = "hidden states",
) -> Floats:
    """Return what ``reduce`` makes of each text's vector, one row a text; forward passes only.

    The output layer is not computed.

    Args:
        model: Causal language model; whatever adapter it has stays switched on.
        encodings: n texts, each with a target token.
        names: Of the texts, for error messages.
        layer: See `Representation.place`.
        pooling: One of `POOLINGS`.
        max_tokens: Token budget of a batch.
        reduce: From vectors [b, h] to rows [b, ...], each of its own vector alone; the vectors
            themselves by default.
        description: Shown with the progress.

    Raises:
        NonFiniteError: If a vector is NaN or infinite; its text is named.
    """
    decoder, device = model.get_decoder(), next(model.parameters()).device
    was_training = model.training
    model.eval()
    rows: list[Floats] = [np.empty(0)] * len(encodings)
    try:
        with task(description, len(encodings)) as progress, torch.inference_mode():
            for members in token_budget_batches([len(e) for e in encodings], max_tokens=max_tokens):
                batch = make_batch([encodings[i] for i in members], device=device)
                inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
                # A list keeps the other layers' states from being held, where transformers can.
                output = decoder(**inputs, use_cache=False, output_hidden_states=[layer])
                vectors = pool(output.hidden_states[layer], batch["labels"].ne(IGNORED), pooling)
                states = vectors.double().cpu().numpy()
                _require_finite(states, [names[i] for i in members])
                for index, row in zip(members, reduce(states), strict=True):
                    rows[index] = row
                progress.advance(len(members))
    finally:
        model.train(was_training)
    return np.stack(rows)


def pool(states: Tensor, targets: Tensor, pooling: str) -> Tensor:
    """Return one vector for each text, [n, h], in float32 or better.

    Args:
        states: [n, t, h].
        targets: [n, t], True at target tokens.
        pooling: One of `POOLINGS`.
    """
    wide = states if states.dtype == torch.float64 else states.float()
    if pooling == "last":
        places = torch.arange(targets.shape[1], device=targets.device)
        last = torch.where(targets, places, 0).argmax(1)
        return wide[torch.arange(len(wide), device=wide.device), last]
    kept = wide.masked_fill(~targets[:, :, None], 0)
    return kept.sum(1) / targets.sum(1, keepdim=True)


def _require_finite(states: Floats, names: Sequence[str]) -> None:
    broken = [name for name, row in zip(names, states, strict=True) if not np.isfinite(row).all()]
    if broken:
        raise NonFiniteError(
            f"the hidden states of {len(broken)} texts are not finite: {', '.join(broken[:8])}",
            expected="finite hidden states",
            remedy="check the adapter for NaN, or use float32",
        )
