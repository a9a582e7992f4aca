"""Influence scores of the train set, in one streamed pass, exact and without projection."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from biasdiff.attribution.estimator import Normalize
from biasdiff.attribution.finite import require_finite
from biasdiff.attribution.gradients import batch_gradients
from biasdiff.attribution.kept_tensors import keep_tensors
from biasdiff.attribution.parameters import ChosenParameters, lora_maps
from biasdiff.attribution.probe_directions import ProbeDirection
from biasdiff.attribution.train_sides import TrainSide
from biasdiff.data.batching import Batch, make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.functional.influence import mean_cosine
from biasdiff.progress import Task, task
from biasdiff.training import processes

BATCHES_A_CHUNK = 16


@dataclass(frozen=True)
class Comparison:
    """A train side and the probe direction it is compared with.

    Attributes:
        train_side: What becomes of a train gradient.
        probe: Its sums are of unit vectors where both sides are normalised.
        normalize: ``none`` keeps the length of the train direction; ``train`` and ``both`` divide
            by it.
    """

    train_side: TrainSide
    probe: ProbeDirection
    normalize: Normalize = "both"


@dataclass(frozen=True)
class Pass:
    """How the train set goes through the model.

    Attributes:
        parameters: What influence is measured in; the adapter's by default.
        group: Examples that share a score, that of their mean gradient; 1 for examples alone.
        average: Whether a loss is the mean over an example's target tokens, or their sum.
        max_tokens: Token budget of a batch.
        seed: Of the grouping.
    """

    max_tokens: int
    parameters: ChosenParameters | None = None
    group: int = 1
    average: bool = True
    seed: int = 0


def score_batch(
    model: Any,
    batch: Batch,
    comparisons: Mapping[str, Comparison],
    how: Pass | None = None,
    *,
    group: int = 1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses [n] of a batch and, per comparison, ⟨Γ̂_i, Σ_j û_j⟩ by bias type, [n, k].

    Gradients live only until their module has been compared; the whole vector of an example never
    exists. Members of a group have the same row.
    """
    parameters = lora_maps(model) if how is None or how.parameters is None else how.parameters
    rows = len(batch["input_ids"]) // group
    device = batch["input_ids"].device
    products = {
        name: torch.zeros(rows, len(c.probe.bias_types), device=device)
        for name, c in comparisons.items()
    }
    squares = {name: torch.zeros(rows, device=device) for name in comparisons}

    def compare(parameter: str, gradients: Tensor) -> None:
        for name, comparison in comparisons.items():
            directions = comparison.train_side(parameter, gradients).float()
            if comparison.normalize != "none":
                squares[name].add_(torch.linalg.vector_norm(directions, dim=1).square())
            products[name].addmm_(directions, comparison.probe.sums[parameter])

    losses = batch_gradients(
        model,
        batch,
        compare,
        parameters=parameters,
        group=group,
        average=how is None or how.average,
    )
    scores = {
        name: products[name]
        if comparison.normalize == "none"
        else mean_cosine(products[name], squares[name])
        for name, comparison in comparisons.items()
    }
    return losses, {name: value.repeat_interleave(group, dim=0) for name, value in scores.items()}


def score_train_set(
    model: Any,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    comparisons: Mapping[str, Comparison],
    how: Pass,
    *,
    work: Path | None = None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Score every train example with every comparison in one pass.

    With several processes each takes its share of the chunks, which meet in ``work``.

    Args:
        model: PEFT model at the checkpoint.
        encodings: The train set.
        names: Ids, for error messages.
        comparisons: By estimator.
        how: Parameters, groups, loss and token budget.
        work: Folder where finished chunks are kept, so that an interrupted pass goes on.

    Returns:
        By estimator the sums over the probes of each bias type, [n, k]; and the pass's ``seconds``,
        ``examples`` and ``tokens`` (of the part that this process did and did not resume).

    Raises:
        NonFiniteError: If a loss or score is NaN or infinite; the examples are named.
    """
    if how.parameters is None:
        how = replace(how, parameters=lora_maps(model))  # found once and not for every batch
    batches = grouped_batches([len(e) for e in encodings], how)
    chunks = [batches[s : s + BATCHES_A_CHUNK] for s in range(0, len(batches), BATCHES_A_CHUNK)]
    found: dict[int, dict[str, Tensor]] = {}
    timing = {"seconds": 0.0, "examples": 0.0, "tokens": 0.0}
    mine = processes.share(range(len(chunks)))
    with task("influence scores", sum(_examples(chunks[c]) for c in mine)) as progress:
        for number in mine:
            kept = _chunk_file(work, number)
            if kept is not None and kept.exists():
                found[number] = load_file(kept)
                progress.skip(_examples(chunks[number]))
                continue
            began = time.perf_counter()
            found[number] = _score_chunk(
                model, encodings, names, chunks[number], comparisons, how, progress
            )
            timing["seconds"] += time.perf_counter() - began
            timing["examples"] += _examples(chunks[number])
            timing["tokens"] += sum(len(encodings[i]) for _, batch in chunks[number] for i in batch)
            if kept is not None:
                keep_tensors(kept, found[number])
    processes.wait_for_all()
    sums = {
        name: torch.empty(len(encodings), len(c.probe.bias_types))
        for name, c in comparisons.items()
    }
    for number, chunk in enumerate(chunks):
        members = [i for _, batch in chunk for i in batch]
        values = found.get(number)
        if values is None:
            kept = _chunk_file(work, number)
            if kept is None:
                raise ValueError("several processes need a folder to meet in: pass work")
            values = load_file(kept)
        for name, tensor in values.items():
            sums[name][members] = tensor
    return sums, timing


def grouped_batches(lengths: Sequence[int], how: Pass) -> list[tuple[int, list[int]]]:
    """Return batches of whole groups: the size of a group and the indices, group after group.

    Groups are drawn with the seed; what is left over makes a smaller one. Without groups, similar
    lengths go together. Parameters that are not of linear maps allow one row a batch.
    """
    most = 1 if how.parameters is not None and how.parameters.others else None
    if how.group == 1:
        alone = token_budget_batches(lengths, max_tokens=how.max_tokens, max_examples=most)
        return [(1, batch) for batch in alone]
    order = random.Random(how.seed).sample(range(len(lengths)), len(lengths))
    groups = [order[start : start + how.group] for start in range(0, len(order), how.group)]
    whole = [group for group in groups if len(group) == how.group]
    rest = [group for group in groups if len(group) < how.group]
    widths = [how.group * max(lengths[i] for i in group) for group in whole]
    batches = token_budget_batches(widths, max_tokens=how.max_tokens, max_examples=most)
    found = [(how.group, [i for g in batch for i in whole[g]]) for batch in batches]
    return found + [(len(group), list(group)) for group in rest]


def _examples(batches: Sequence[tuple[int, Sequence[int]]]) -> int:
    return sum(len(batch) for _, batch in batches)


def _chunk_file(work: Path | None, number: int) -> Path | None:
    return None if work is None else work / f"scores-{number:06d}.safetensors"


def _score_chunk(
    model: Any,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    batches: Sequence[tuple[int, Sequence[int]]],
    comparisons: Mapping[str, Comparison],
    how: Pass,
    progress: Task,
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {name: [] for name in comparisons}
    for group, batch in batches:
        inputs = make_batch([encodings[i] for i in batch], device=device)
        losses, values = score_batch(model, inputs, comparisons, how, group=group)
        require_finite([losses, *values.values()], [names[i] for i in batch])
        for name, value in values.items():
            found[name].append(value.cpu())
        progress.advance(len(batch))
    return {name: torch.cat(values) for name, values in found.items()}
