"""Log-probability of every token of many texts, forward passes only; shared prefixes once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.errors import NonFiniteError
from biasdiff.functional.token_alignment import shared_prefix
from biasdiff.progress import task
from biasdiff.training import processes
from biasdiff.training.target_losses import model_inputs, target_log_probs, target_positions

Floats = NDArray[np.float64]
Pair = tuple[Encoding, Encoding]
Group = Sequence[Encoding]
WORTH_SHARING = 0.05
"""Share of all tokens that prefix sharing must save to be used."""
_TOLERANCE = 2e-3


def score_tokens(
    model: Any, encodings: Sequence[Encoding], *, max_tokens: int, description: str = "tokens"
) -> list[Floats]:
    """Return log P(token | tokens before it) of every target token of every text.

    Args:
        model: Causal language model.
        encodings: Texts; the start token is a condition and no target.
        max_tokens: Token budget of a batch.
        description: Shown with the progress.

    Returns:
        One array for each text, [targets], in the order of its tokens.

    Raises:
        NonFiniteError: If a value is NaN or infinite; the text is named by its number.
    """
    device = next(model.parameters()).device
    found: dict[int, Floats] = {}
    model.eval()
    batches = token_budget_batches([len(e) for e in encodings], max_tokens=max_tokens)
    with task(description, len(encodings)) as progress, torch.inference_mode():
        for members in processes.share(batches):
            batch = make_batch([encodings[i] for i in members], device=device)
            at, targets = target_positions(batch["labels"])
            values = _array(target_log_probs(model, model_inputs(batch), at, targets))
            counts = torch.bincount(at[0], minlength=len(members)).tolist()
            for index, part in zip(members, np.split(values, np.cumsum(counts)[:-1]), strict=True):
                found[index] = part
            progress.advance(len(members))
    found = processes.gather(found)
    _require_finite(sorted(found.items()))
    return [found[index] for index in range(len(encodings))]


def log_likelihoods(
    model: Any,
    encodings: Sequence[Encoding],
    *,
    max_tokens: int,
    description: str = "log-likelihoods",
) -> Floats:
    """Return log P of each text's target tokens given those before, summed, [n].

    Raises:
        NonFiniteError: As `score_tokens`.
    """
    scores = score_tokens(model, encodings, max_tokens=max_tokens, description=description)
    return np.array([values.sum() for values in scores])


def score_token_pairs(
    model: Any,
    pairs: Sequence[Pair],
    *,
    max_tokens: int,
    description: str = "pairs",
    share_prefixes: bool = True,
) -> list[tuple[Floats, Floats]]:
    """Return what `score_tokens` returns, for both texts of every pair; see `score_token_groups`.

    Raises:
        NonFiniteError: If a value is NaN or infinite; the pair is named by its number.
    """
    found = score_token_groups(
        model,
        pairs,
        max_tokens=max_tokens,
        description=description,
        share_prefixes=share_prefixes,
    )
    return [(more, less) for more, less in found]


def score_token_groups(
    model: Any,
    groups: Sequence[Group],
    *,
    max_tokens: int,
    description: str = "groups",
    share_prefixes: bool = True,
) -> list[list[Floats]]:
    """Return what `score_tokens` returns, for every text of every group.

    A row of a batch holds what all texts of a group begin with, then the rest of each; a rest sees
    the beginning and itself only (an attention mask over positions) and carries the positions it
    has in its own text. The first batch is scored the plain way too; a model that disagrees,
    because it makes positions or masks in a way of its own, is scored plainly throughout.

    Args:
        model: Causal language model.
        groups: Texts, with targets everywhere but at the start token; at least one in each group.
        max_tokens: Token budget of a batch.
        description: Shown with the progress.
        share_prefixes: False to score plainly.

    Raises:
        NonFiniteError: If a value is NaN or infinite; the group is named by its number.
    """
    if share_prefixes and _saved(groups) >= WORTH_SHARING:
        found = _score_shared(model, groups, max_tokens, description)
        if found is not None:
            return found
    texts = [encoding for group in groups for encoding in group]
    values = iter(score_tokens(model, texts, max_tokens=max_tokens, description=description))
    return [[next(values) for _ in group] for group in groups]


def _saved(groups: Sequence[Group]) -> float:
    """Return the share of all tokens that need not be computed twice."""
    total = sum(len(encoding) for group in groups for encoding in group)
    return sum(common_prefix(group) * (len(group) - 1) for group in groups) / max(total, 1)


def common_prefix(group: Group) -> int:
    """Return the number of leading tokens that all texts of a group have in common."""
    first = group[0].input_ids
    return min(shared_prefix(first, other.input_ids) for other in group)


def _score_shared(
    model: Any, groups: Sequence[Group], max_tokens: int, description: str
) -> list[list[Floats]] | None:
    """Score groups with their beginnings shared; None if the model does not follow the mask."""
    prefixes = [common_prefix(group) for group in groups]
    widths = [p + sum(len(e) - p for e in group) for group, p in zip(groups, prefixes, strict=True)]
    batches = token_budget_batches(widths, max_tokens=max_tokens)
    model.eval()
    if not _agrees(model, [(groups[i], prefixes[i]) for i in batches[0]], max_tokens):
        return None
    found: dict[int, list[Floats]] = {}
    with task(description, len(groups)) as progress, torch.inference_mode():
        for members in processes.share(batches):
            scores = _batch(model, [(groups[i], prefixes[i]) for i in members])
            found |= zip(members, scores, strict=True)
            progress.advance(len(members))
    found = processes.gather(found)
    whole = [found[index] for index in range(len(groups))]
    _require_finite([(i, values) for i, group in enumerate(whole) for values in group])
    return whole


@torch.inference_mode()
def _agrees(model: Any, chosen: Sequence[tuple[Group, int]], max_tokens: int) -> bool:
    """Find out whether a model scores a batch with shared beginnings as it does plainly."""
    try:
        scores = _batch(model, chosen)
    except (ValueError, RuntimeError, TypeError):
        return False
    texts = [encoding for group, _ in chosen for encoding in group]
    plain = np.concatenate(score_tokens(model, texts, max_tokens=max_tokens))
    ours = np.concatenate([values for group in scores for values in group])
    return bool(np.allclose(ours, plain, atol=_TOLERANCE, rtol=_TOLERANCE))


def _batch(model: Any, chosen: Sequence[tuple[Group, int]]) -> list[list[Floats]]:
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    width = max(p + sum(len(e) - p for e in group) for group, p in chosen)
    ids = torch.zeros(len(chosen), width, dtype=torch.long)
    positions = torch.zeros(len(chosen), width, dtype=torch.long)
    allowed = torch.eye(width, dtype=torch.bool).repeat(len(chosen), 1, 1)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    rows: list[int] = []
    places: list[int] = []
    targets: list[int] = []

    def ask(row: int, place: int, token: int) -> None:
        rows.append(row)
        places.append(place)
        targets.append(token)

    for row, (group, prefix) in enumerate(chosen):
        beginning = group[0].input_ids[:prefix]
        ids[row, :prefix] = torch.tensor(beginning)
        positions[row, :prefix] = torch.arange(prefix)
        allowed[row, :prefix, :prefix] = causal[:prefix, :prefix]
        for place, token in enumerate(beginning[1:]):
            ask(row, place, token)
        start = prefix
        for encoding in group:
            rest = encoding.input_ids[prefix:]
            end = start + len(rest)
            ids[row, start:end] = torch.tensor(rest, dtype=torch.long)
            positions[row, start:end] = torch.arange(prefix, len(encoding))
            allowed[row, start:end, :prefix] = True
            allowed[row, start:end, start:end] = causal[: len(rest), : len(rest)]
            for offset, token in enumerate(rest):
                ask(row, start + offset - 1 if offset else prefix - 1, token)
            start = end
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    inputs = {
        "input_ids": ids.to(device),
        "attention_mask": mask[:, None].to(device),
        "position_ids": positions.to(device),
        "use_cache": False,
    }
    where = (torch.tensor(rows, device=device), torch.tensor(places, device=device))
    values = _array(target_log_probs(model, inputs, where, torch.tensor(targets, device=device)))
    scores: list[list[Floats]] = []
    start = 0
    for group, prefix in chosen:
        shared = values[start : start + prefix - 1]
        start += len(shared)
        own: list[Floats] = []
        for encoding in group:
            end = start + len(encoding) - prefix
            own.append(np.concatenate([shared, values[start:end]]))
            start = end
        scores.append(own)
    return scores


def _array(values: Tensor) -> Floats:
    return np.asarray(values.double().cpu().numpy(), dtype=np.float64)


def _require_finite(values: Sequence[tuple[int, Floats]]) -> None:
    broken = [index for index, array in values if not np.isfinite(array).all()]
    if broken:
        raise NonFiniteError(
            f"the log-likelihood of {len(broken)} texts is not finite, first in row {broken[0]}",
            expected="finite log-likelihoods",
            remedy="check the model for NaN weights, or use float32",
        )
