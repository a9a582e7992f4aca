"""Finite-step influence: train on the stereotypes and on their twins, compare what became likelier.

To first order a small step along -∇ℓ(probe) changes the log-likelihood of a train example by the
inner product of the two gradients, which is what gradient estimators measure. Here the steps are
taken, both ways, and the change is read off with forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from biasdiff.attribution.adapter_training import (
    AUTO,
    PairTraining,
    side_contrast,
    stereotype_names,
    train_on_sides,
)
from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.kept_tensors import keep_tensors
from biasdiff.attribution.material import Material
from biasdiff.attribution.paired_adapters import (
    SIDES,
    Layers,
    PairedAdapters,
    Start,
    paired_adapters,
)
from biasdiff.attribution.scores import Floats, Scores, untyped_scores
from biasdiff.attribution.split_forward import SplitForward
from biasdiff.data.batching import token_budget_batches
from biasdiff.data.probe import require_twins
from biasdiff.errors import ConfigError, NonFiniteError, listed
from biasdiff.options import ESTIMATORS, Options, checked_options, wrong_option
from biasdiff.progress import task

NAME = "adapter_contrast"
BATCHES_A_CHUNK = 16
DEFAULTS: dict[str, Any] = {
    "epochs": 3,
    "learning_rate": 1e-3,
    "rank": 8,
    "batch_size": 16,
    "layers": "all",
    "targets": (),
    "start": "base",
}
_CHOICES = {"layers": ("all", "upper"), "start": ("base", "checkpoint")}


@dataclass(frozen=True)
class AdapterContrastSettings:
    """Options of the estimator.

    Attributes:
        training: ``epochs`` (a number or ``auto``), ``learning_rate`` and ``batch_size``.
        rank: Of fresh adapters.
        layers: ``all``, or ``upper`` for adapters in the upper half of the decoder layers only,
            whose lower half is then computed once for both.
        targets: Names of linear maps for fresh adapters; none for those of the given adapter.
        start: ``base``: fresh adapters on the base model, the given adapter switched off;
            ``checkpoint``: copies of the given adapter, trained on.
    """

    training: PairTraining
    rank: int
    layers: Layers
    targets: tuple[str, ...]
    start: Start


def adapter_contrast_settings(given: Options) -> AdapterContrastSettings:
    """Return the estimator's options, checked.

    Raises:
        ConfigError: If one is unknown or out of range, or ``rank`` or ``targets`` are given for
            copies of an adapter, which has its own.
    """
    options = checked_options(given, NAME, DEFAULTS, section=ESTIMATORS)
    for name, choices in _CHOICES.items():
        if options[name] not in choices:
            raise _wrong(name, options[name], f"one of {', '.join(choices)}")
    if options["start"] == "checkpoint" and (own := {"rank", "targets"} & set(given)):
        raise _wrong(min(own), given[min(own)], "nothing where start is 'checkpoint'")
    for name in ("epochs", "rank", "batch_size"):
        value, free = options[name], name == "epochs"
        if free and value == AUTO:
            continue
        if type(value) is not int or value < 1:
            raise _wrong(name, value, f"a whole number from 1{' or auto' if free else ''}")
    targets = options["targets"]
    if not isinstance(targets, list | tuple) or not all(isinstance(t, str) for t in targets):
        raise _wrong("targets", targets, "a list of names of linear maps")
    rate = _rate(options["learning_rate"])
    return AdapterContrastSettings(
        PairTraining(options["epochs"], rate, options["batch_size"]),
        options["rank"],
        options["layers"],
        tuple(targets),
        options["start"],
    )


def _rate(value: Any) -> float:
    try:  # YAML reads 1e-3 as a string
        rate = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not (rate > 0 and math.isfinite(rate)):
        raise _wrong("learning_rate", value, "a number above 0")
    return rate


def _wrong(option: str, value: Any, expected: str) -> ConfigError:
    return wrong_option(NAME, option, value, expected, section=ESTIMATORS)


def adapter_contrast_scores(material: Material) -> Scores:
    """Score the train set by what a few steps on stereotypes, rather than on twins, make likelier.

    score_i = (1/T_i) Σ_t [log P_s(x_it | before) - log P_w(x_it | before)], with P_s the model
    under an adapter trained on the stereotype sides of the probe pairs and P_w under one trained on
    their twins, from the same start and in the same order. The train set costs two forward passes,
    or one and a half with ``layers: upper``. Scores by bias type are not defined.

    Args:
        material: With twins; the model is left as it was found.

    Raises:
        ConfigError: As `adapter_contrast_settings`.
        DataError: If a pair has no twin, or there are too few pairs.
        ModelError: As `paired_adapters`.
        NonFiniteError: If a loss or score is NaN or infinite; the examples are named.
    """
    settings = adapter_contrast_settings(material.options)
    require_twins(material.pairs, purpose=f"the estimator '{NAME}'")
    adapters = paired_adapters(
        material.model,
        start=settings.start,
        layers=settings.layers,
        rank=settings.rank,
        targets=settings.targets,
        seed=material.seed,
    )
    base = material.model.get_base_model()

    def trained() -> dict[str, torch.Tensor]:
        train_on_sides(
            base,
            adapters,
            material.probes,
            stereotype_names(material.pairs),
            settings.training,
            seed=material.seed,
            max_tokens=material.max_tokens,
        )
        return adapters.state_dict()

    with adapters.attached(material.model):
        adapters.load_state_dict(_kept(material.work, "adapters", trained))
        return untyped_scores(_train_set_scores(base, adapters, material))


def _train_set_scores(base: Any, adapters: PairedAdapters, material: Material) -> Floats:
    encodings, names = material.encodings, material.names
    device = next(base.parameters()).device
    forward = SplitForward(base, adapters.switch, SIDES, shared=adapters.first_layer)
    batches = token_budget_batches([len(e) for e in encodings], max_tokens=material.max_tokens)
    scores = np.empty(len(encodings))
    with task("adapter contrast", len(encodings)) as progress:
        for start in range(0, len(batches), BATCHES_A_CHUNK):
            indices = [i for batch in batches[start : start + BATCHES_A_CHUNK] for i in batch]

            def chunk(start: int = start) -> dict[str, torch.Tensor]:
                found = []
                for batch in batches[start : start + BATCHES_A_CHUNK]:
                    values = side_contrast(forward, [encodings[i] for i in batch], device)
                    _require_finite(values, [names[i] for i in batch])
                    found.append(torch.from_numpy(values))
                return {"scores": torch.cat(found)}

            scores[indices] = _kept(material.work, f"{start:06d}", chunk)["scores"].numpy()
            progress.advance(len(indices))
    return scores


def _kept(
    work: Path | None, part: str, compute: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return what an interrupted pass has left in its folder, or compute it and leave it there."""
    if work is None:
        return compute()
    file = work / f"{NAME}-{part}.safetensors"
    if file.exists():
        return load_file(file)
    found = compute()
    keep_tensors(file, found)
    return found


def _require_finite(scores: Floats, names: Sequence[str]) -> None:
    broken = [name for name, value in zip(names, scores, strict=True) if not np.isfinite(value)]
    if broken:
        raise NonFiniteError(
            f"the log-likelihood is not finite for {listed(broken)}",
            expected="finite log-likelihoods",
            remedy="lower learning_rate, check these examples or use float32",
        )


ADAPTER_CONTRAST = DirectEstimator(
    name=NAME,
    formula="mean log-likelihood per token after training on the probe's stereotypes, minus that "
    "after training on their twins",
    score=adapter_contrast_scores,
    check=adapter_contrast_settings,
    needs_twins=True,
)
