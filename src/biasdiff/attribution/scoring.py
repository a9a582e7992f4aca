"""Influence scores of the train set, in one streamed pass, exact and without projection."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from biasdiff.attribution.gradients import backward_example_losses, per_example_gradients
from biasdiff.attribution.probe_directions import ProbeDirection
from biasdiff.attribution.train_sides import TrainSide
from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.errors import NonFiniteError
from biasdiff.functional.influence import mean_cosine
from biasdiff.progress import Task, task

BATCHES_A_CHUNK = 16


@dataclass(frozen=True)
class Comparison:
    """A train side and the probe direction it is compared with."""

    train_side: TrainSide
    probe: ProbeDirection


@dataclass(frozen=True)
class Scores:
    """Influence scores of one estimator; higher pushes the model more towards the stereotypes.

    Attributes:
        overall: [n], the mean cosine with all probe vectors.
        by_type: [n, k], the mean cosine with those of each bias type.
        bias_types: The k names.
    """

    overall: Tensor
    by_type: Tensor
    bias_types: tuple[str, ...]


def score_batch(
    model: Any, batch: dict[str, Tensor], comparisons: Mapping[str, Comparison]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses [n] of a batch and, per comparison, ⟨Γ̂_i, Σ_j û_j⟩ by bias type, [n, k].

    Gradients live only until their module has been compared; the whole vector of an example never
    exists.
    """
    n = len(batch["input_ids"])
    device = batch["input_ids"].device
    products = {
        name: torch.zeros(n, len(c.probe.bias_types), device=device)
        for name, c in comparisons.items()
    }
    squares = {name: torch.zeros(n, device=device) for name in comparisons}

    def compare(parameter: str, gradients: Tensor) -> None:
        for name, comparison in comparisons.items():
            directions = comparison.train_side(parameter, gradients).float()
            squares[name].add_(torch.linalg.vector_norm(directions, dim=1).square())
            products[name].addmm_(directions, comparison.probe.sums[parameter])

    with per_example_gradients(model, compare):
        losses = backward_example_losses(model, batch)
    return losses, {name: mean_cosine(products[name], squares[name]) for name in comparisons}


def score_train_set(
    model: Any,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    comparisons: Mapping[str, Comparison],
    *,
    max_tokens: int,
    work: Path | None = None,
) -> tuple[dict[str, Scores], dict[str, float]]:
    """Score every train example with every comparison in one pass.

    Args:
        model: PEFT model at the checkpoint.
        encodings: The train set.
        names: Ids, for error messages.
        comparisons: By estimator.
        max_tokens: Token budget of a batch.
        work: Folder where finished chunks are kept, so that an interrupted pass goes on.

    Returns:
        Scores by estimator, and the pass's ``seconds``, ``examples`` and ``tokens`` (of the part
        that was not resumed).

    Raises:
        NonFiniteError: If a loss or score is NaN or infinite; the examples are named.
    """
    batches = token_budget_batches([len(e) for e in encodings], max_tokens=max_tokens)
    sums = {
        name: torch.empty(len(encodings), len(c.probe.bias_types))
        for name, c in comparisons.items()
    }
    timing = {"seconds": 0.0, "examples": 0.0, "tokens": 0.0}
    with task("influence scores", len(encodings)) as progress:
        for start in range(0, len(batches), BATCHES_A_CHUNK):
            members = batches[start : start + BATCHES_A_CHUNK]
            indices = [i for batch in members for i in batch]
            kept = work / f"scores-{start:06d}.safetensors" if work is not None else None
            if kept is not None and kept.exists():
                chunk = load_file(kept)
                progress.skip(len(indices))
            else:
                began = time.perf_counter()
                chunk = _score_chunk(model, encodings, names, members, comparisons, progress)
                timing["seconds"] += time.perf_counter() - began
                timing["examples"] += len(indices)
                timing["tokens"] += sum(len(encodings[i]) for i in indices)
                if kept is not None:
                    save_file(chunk, kept.with_suffix(".tmp"))
                    kept.with_suffix(".tmp").rename(kept)
            for name, values in chunk.items():
                sums[name][indices] = values
    scores = {name: _scores(values, comparisons[name].probe) for name, values in sums.items()}
    return scores, timing


def _score_chunk(
    model: Any,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    batches: Sequence[Sequence[int]],
    comparisons: Mapping[str, Comparison],
    progress: Task,
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {name: [] for name in comparisons}
    for batch in batches:
        inputs = make_batch([encodings[i] for i in batch], device=device)
        losses, values = score_batch(model, inputs, comparisons)
        _check_finite(losses, values, [names[i] for i in batch])
        for name, value in values.items():
            found[name].append(value.cpu())
        progress.advance(len(batch))
    return {name: torch.cat(values) for name, values in found.items()}


def _scores(sums: Tensor, probe: ProbeDirection) -> Scores:
    counts = torch.tensor(probe.counts, dtype=sums.dtype)
    return Scores(sums.sum(1) / counts.sum(), sums / counts, probe.bias_types)


def _check_finite(losses: Tensor, scores: Mapping[str, Tensor], names: Sequence[str]) -> None:
    good = torch.isfinite(losses)
    for values in scores.values():
        good = good & torch.isfinite(values).all(1).to(good.device)
    broken = [name for name, fine in zip(names, good.tolist(), strict=True) if not fine]
    if broken:
        raise NonFiniteError(
            f"loss or gradient is not finite for {', '.join(broken[:8])}"
            + (f" and {len(broken) - 8} more" if len(broken) > 8 else ""),
            expected="finite losses and gradients",
            remedy="check these examples and the adapter, or use float32",
        )
