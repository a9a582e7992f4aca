"""A linear classifier of stereotype against twin in gradient space, as a probe direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from biasdiff.attribution.bias_types import membership
from biasdiff.attribution.estimator import GradientEstimator
from biasdiff.attribution.material import EncodedProbes
from biasdiff.attribution.pair_classifier import fit_pair_classifier
from biasdiff.attribution.parameters import ChosenParameters
from biasdiff.attribution.probe_directions import (
    ProbeDirection,
    pair_gradients,
    probe_batches,
    vector_lengths,
)
from biasdiff.progress import task

BLOCK_BYTES = 2**31
_RELATIVE_RANK = 1e-7

CONTRAST_CLASSIFIER = GradientEstimator(
    name="contrast_classifier",
    formula="cos(∇ℓ_i, w), w the weights of a logistic regression on unit probe gradients, "
    "stereotype against twin",
    probe="classifier",
    train_side="sgd",
)


def classifier_direction(
    model: Any,
    probes: EncodedProbes,
    groups: Sequence[str],
    *,
    parameters: ChosenParameters,
    max_tokens: int,
    seed: int,
    average: bool = True,
) -> tuple[ProbeDirection, float]:
    """Fit the classifier and return its weights as a direction, and its accuracy.

    With unit gradients x_j of all 2m probe sentences and their Gram matrix K = X Xᵀ = U Λ Uᵀ, a
    linear classifier with an L2 penalty on X is the same as one on the coordinates U Λ^½, whose
    weights β give w = Xᵀ U Λ^-½ β. So K is built in blocks (`gram_matrix`), the classifier is
    fitted on at most 2m coordinates, and w is added up in a second pass: the gradients are never
    held together.

    Args:
        model: PEFT model.
        probes: m pairs with twins.
        groups: Stereotype of each pair, which cross-validation keeps together.
        parameters: What gradients are taken in.
        max_tokens: Token budget of a batch.
        seed: Of the cross-validation's folds.
        average: Whether a loss is the mean over target tokens, or their sum.

    Returns:
        The direction, split by the bias types of the pairs it is made of; and the share of held-out
        pairs whose stereotype sentence the classifier puts above the twin.
    """
    gram, lengths = gram_matrix(
        model, probes, parameters=parameters, max_tokens=max_tokens, average=average
    )
    values, vectors = np.linalg.eigh(gram.double().numpy())
    kept = values > _RELATIVE_RANK * values[-1]
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    coordinates, m = vectors * roots, len(probes.more)
    fitted = fit_pair_classifier(
        coordinates[:m],
        coordinates[m:],
        groups,
        seed=seed,
        standardise=False,
        name="gradient classifier",
    )
    weights = torch.from_numpy(vectors @ (fitted.weights / roots)).float() / lengths
    types = membership(probes.bias_types)
    device = next(model.parameters()).device
    sums = {n: torch.zeros(d, len(types.names), device=device) for n, d in parameters.sizes.items()}
    batches = probe_batches(probes, parameters, twins=True, max_tokens=max_tokens)
    with task("classifier direction", m) as progress:
        for members in batches:
            sides = pair_gradients(model, probes, members, parameters, twins=True, average=average)
            for side, gradients in enumerate(sides):
                own = weights[[side * m + index for index in members]].to(device)
                shares = types.rows(members, device) * own[:, None]
                for name, vector in gradients.items():
                    sums[name].addmm_(vector.float().T, shares)
            progress.advance(len(members))
    return ProbeDirection(sums, types.names, types.counts), fitted.accuracy


def gram_matrix(
    model: Any,
    probes: EncodedProbes,
    *,
    parameters: ChosenParameters,
    max_tokens: int,
    average: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return ⟨x_i, x_j⟩ of the unit gradients of all probe sentences, and the gradients' lengths.

    The gradients of one block of pairs, as many as `BLOCK_BYTES` hold, meet those of all later
    batches; with b blocks that is (b + 1) / 2 passes over the probe set.

    Returns:
        [2m, 2m] and [2m] on the CPU: the stereotype sentences, then their twins. A gradient of
        length 0 is taken as it is.

    Raises:
        NonFiniteError: If a probe's gradient is NaN or infinite; its name is given.
    """
    m = len(probes.more)
    batches = probe_batches(probes, parameters, twins=True, max_tokens=max_tokens)
    held = max(1, BLOCK_BYTES // (8 * sum(parameters.sizes.values())))
    blocks: list[list[list[int]]] = [[]]
    for batch in batches:
        if blocks[-1] and sum(map(len, blocks[-1])) + len(batch) > held:
            blocks.append([])
        blocks[-1].append(batch)
    gram, lengths = torch.zeros(2 * m, 2 * m), torch.ones(2 * m)

    def unit_rows(members: list[int]) -> tuple[dict[str, Tensor], list[int]]:
        sides = pair_gradients(model, probes, members, parameters, twins=True, average=average)
        rows = {name: torch.cat([side[name].float() for side in sides]) for name in sides[0]}
        found = vector_lengths(rows, [probes.names[i] for i in members] * 2)
        places = [*members, *(m + i for i in members)]
        lengths[places] = torch.where(found > 0, found, 1.0).cpu()
        scale = lengths[places].to(found.device)[:, None]
        return {name: tensor / scale for name, tensor in rows.items()}, places

    later = [[batch for part in blocks[b:] for batch in part] for b in range(len(blocks))]
    with task("gram matrix", sum(len(batch) for part in later for batch in part)) as progress:
        for number, block in enumerate(blocks):
            held_rows: list[tuple[dict[str, Tensor], list[int]]] = []
            for members in later[number]:
                rows, places = unit_rows(members)
                inside = members in block
                if inside:
                    held_rows.append((rows, places))
                for other, others in held_rows:
                    products = sum(other[name] @ rows[name].T for name in rows)
                    assert isinstance(products, Tensor)  # at least one parameter is measured in
                    gram[torch.tensor(others)[:, None], torch.tensor(places)] = products.cpu()
                    gram[torch.tensor(places)[:, None], torch.tensor(others)] = products.T.cpu()
                progress.advance(len(members))
    return gram, lengths
