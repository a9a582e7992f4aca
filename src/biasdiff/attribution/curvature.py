"""Probe directions multiplied by the inverse curvature of the train loss.

The influence of train example i on the mean probe loss is ⟨H⁻¹ v, g_i⟩ (Koh and Liang 2017, with
the sign turned so that higher lowers the probe loss). H⁻¹ is symmetric, so it is applied once to
the probe direction v, and the train set is scored by plain products with its gradients g_i.

H is a mean of outer products of train gradients, one block for each weight. Which gradients these
are depends on the labels:

``sampled``: labels drawn from the model. With ℓ_i the mean over the example's T_i targets,
H = (1/n) Σ_i T_i E[∇ℓ_i ∇ℓ_iᵀ] is the Fisher and Gauss-Newton matrix of the mean train loss (draws
at different positions are independent, so the outer product of a mean over T_i of them is T_i
times too small). One draw stands for the expectation.

``empirical``: the labels of the data, H = (1/n) Σ_i ∇ℓ_i ∇ℓ_iᵀ. No draws are needed, but it is like
the curvature only where the model is as sure of the train set as it is right; where it has learnt
the train set by heart, gradients and H shrink to nothing together.

Neither is the Hessian: both leave out the curvature of the network itself, which keeps them
positive, and both presuppose a model near an optimum of the train loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from biasdiff.attribution.curvature_sample import (
    FEWEST,
    CurvatureSample,
    Part,
    draw_sample,
    parts,
    pass_over_gradients,
    with_drawn_labels,
)
from biasdiff.attribution.gradients import token_gradients
from biasdiff.attribution.parameters import ChosenParameters, WatchedMap, lora_maps
from biasdiff.data.encoding import Encoding
from biasdiff.errors import ModelError
from biasdiff.functional.curvature import (
    EigenFactors,
    datainf_correction,
    datainf_damping,
    datainf_direction,
    eigenvectors,
    ekfac_damping,
    ekfac_direction,
    rotated_squares,
)
from biasdiff.options import ESTIMATORS, Options, checked_options, wrong_option
from biasdiff.training.target_losses import backward_example_losses

DEFAULTS: dict[str, dict[str, Any]] = {
    "datainf": {"damping": 0.1, "sample": 1000, "labels": "empirical"},
    "ekfac": {"damping": 0.1, "sample": 1000, "labels": "sampled"},
}
"""Settings of each method: its paper's, but for the sample."""
LABELS = ("sampled", "empirical")


def curvature_options(method: str, given: Options) -> dict[str, Any]:
    """Return the settings of a method, its defaults where nothing is said.

    Args:
        method: ``datainf`` or ``ekfac``.
        given: Some of ``damping`` (relative, see `precondition`), ``sample`` (train examples used
            at most) and ``labels`` (``sampled`` or ``empirical``).

    Raises:
        ConfigError: If a setting is unknown or out of range.
    """
    options = checked_options(given, method, DEFAULTS[method], section=ESTIMATORS)

    def is_number(value: Any, kinds: type | tuple[type, ...], least: float) -> bool:
        right = isinstance(value, kinds) and not isinstance(value, bool)
        return right and least <= value < float("inf")

    damping, sample, labels = (options[key] for key in ("damping", "sample", "labels"))
    smallest = torch.finfo(torch.float64).tiny
    if not is_number(damping, (int, float), smallest):
        raise wrong_option(method, "damping", damping, "a number above 0", section=ESTIMATORS)
    if not is_number(sample, int, FEWEST):
        expected = f"a whole number from {FEWEST} up"
        raise wrong_option(method, "sample", sample, expected, section=ESTIMATORS)
    if labels not in LABELS:
        expected = f"one of {', '.join(LABELS)}"
        raise wrong_option(method, "labels", labels, expected, section=ESTIMATORS)
    return options


def precondition(
    model: Any,
    encodings: Sequence[Encoding],
    directions: Mapping[str, Tensor],
    *,
    method: str,
    max_tokens: int,
    seed: int,
    names: Sequence[str] = (),
    parameters: ChosenParameters | None = None,
    **settings: Any,
) -> dict[str, Tensor]:
    """Return H⁻¹ v for every direction v, with H the curvature of the train loss.

    Damping is relative to the size of each weight's own curvature, as in both papers. So even
    under infinite damping a weight per parameter remains: H⁻¹ v tends to v / λ_l, and to the order
    of plain products only within one parameter.

    Args:
        model: PEFT model at the checkpoint; left as it was.
        encodings: The train set.
        directions: By parameter name, [d, k], the parameter flattened row by row. Parameters that
            are not named are left alone.
        method: ``datainf`` (see `datainf_direction`) or ``ekfac`` (see `ekfac_direction`).
        max_tokens: Token budget of a batch.
        seed: Of the sample of train examples, and of drawn labels.
        names: Ids of the train examples, for error messages.
        parameters: What influence is measured in; the adapter's by default.
        settings: See `curvature_options`.

    Returns:
        Directions of the same names, shapes and dtypes; zero for a parameter in which no example
        of the sample has a gradient.

    Raises:
        ConfigError: If a setting is unknown or out of range.
        DataError: If there are fewer than two train examples.
        ModelError: If a direction fits no parameter, or EK-FAC is asked for other parameters than
            those of linear maps.
        NonFiniteError: If a train example's loss or gradient is NaN or infinite; it is named.
    """
    options = curvature_options(method, settings)
    chosen = _chosen(model, directions, parameters)
    sample = draw_sample(encodings, names, size=options["sample"], max_tokens=max_tokens, seed=seed)
    if options["labels"] == "sampled":
        sample = with_drawn_labels(model, sample, seed=seed)
    if method == "datainf":
        return _datainf(model, sample, directions, chosen, options["damping"])
    factors = ekfac_factors(model, sample, chosen, {n: v.dtype for n, v in directions.items()})
    return {
        name: ekfac_direction(v, factors[name], ekfac_damping(factors[name], options["damping"]))
        for name, v in directions.items()
    }


def _datainf(
    model: Any,
    sample: CurvatureSample,
    directions: Mapping[str, Tensor],
    chosen: ChosenParameters,
    factor: float,
) -> dict[str, Tensor]:
    """Return DataInf's H⁻¹ v in two passes: all of λ is needed before the first correction."""
    count = len(sample.encodings)
    totals = dict.fromkeys(directions, 0.0)
    corrections = {name: torch.zeros_like(v) for name, v in directions.items()}

    def add_norms(name: str, gradients: Tensor) -> None:
        totals[name] += float(gradients.double().square().sum())

    pass_over_gradients(model, sample, chosen, add_norms, "curvature: norms")
    lambdas = {
        name: datainf_damping(total, count, len(directions[name]), factor)
        for name, total in totals.items()
    }

    def add_corrections(name: str, gradients: Tensor) -> None:
        if lambdas[name] > 0:
            own = gradients.to(directions[name].dtype)
            corrections[name] += datainf_correction(own, directions[name], lambdas[name])

    pass_over_gradients(model, sample, chosen, add_corrections, "curvature: corrections")
    return {
        name: datainf_direction(v, corrections[name], count, lambdas[name])
        for name, v in directions.items()
    }


def ekfac_factors(
    model: Any,
    sample: CurvatureSample,
    chosen: ChosenParameters,
    dtypes: Mapping[str, torch.dtype],
) -> dict[str, EigenFactors]:
    """Fit EK-FAC's factors in two passes: first the eigenbasis, then its eigenvalues.

    A = E[x xᵀ] and S = E[dy dyᵀ] are means over real tokens, dy the gradient of the example's
    scaled loss in the map's output. Memory is (inputs² + outputs²) numbers for each map.

    Args:
        model: The model.
        sample: Train examples.
        chosen: Parameters of linear maps; a bias is the weight of an input that is always 1.
        dtypes: Of the factors, by parameter name.

    Raises:
        ModelError: If other parameters are among them.
        NonFiniteError: If a train example's loss or gradient is NaN or infinite; it is named.
    """
    if chosen.others:
        raise ModelError(
            f"EK-FAC of {next(iter(chosen.others))}, which is not a linear map's own",
            expected="weights and biases of linear maps",
            remedy="choose parameters without norms and embeddings, or take DataInf",
        )
    bases = {
        name: (eigenvectors(left), eigenvectors(right))
        for name, (left, right) in _covariances(model, sample, chosen, dtypes).items()
    }
    totals = {name: left.new_zeros(len(left), len(right)) for name, (left, right) in bases.items()}

    def add_squares(name: str, gradients: Tensor) -> None:
        left, right = bases[name]
        matrices = gradients.to(left.dtype).reshape(-1, len(left), len(right))
        totals[name] += rotated_squares(matrices, left, right)

    pass_over_gradients(model, sample, chosen, add_squares, "curvature: eigenvalues")
    count = len(sample.encodings)
    return {name: EigenFactors(*bases[name], total / count) for name, total in totals.items()}


def _covariances(
    model: Any,
    sample: CurvatureSample,
    chosen: ChosenParameters,
    dtypes: Mapping[str, torch.dtype],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return S and A of every map, A and S where its weight is stored [inputs, outputs]."""
    sums: dict[str, list[Tensor]] = {}
    tokens = sum(map(len, sample.encodings))
    for part in parts(model, sample, "curvature: factors"):
        for name, sides in _token_rows(model, part, chosen).items():
            rows = [side.to(dtypes[name]) for side in sides]
            totals = sums.setdefault(name, [r.new_zeros(r.shape[1], r.shape[1]) for r in rows])
            for total, own in zip(totals, rows, strict=True):
                total.addmm_(own.T, own)
    return {name: (left / tokens, right / tokens) for name, (left, right) in sums.items()}


def _token_rows(
    model: Any, part: Part, chosen: ChosenParameters
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return scaled output gradients and inputs of every map at every real token, [m, o], [m, i].

    The other way round where a weight is stored [inputs, outputs].
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    real = part.batch["attention_mask"].bool()

    def keep(watched: WatchedMap, x: Tensor, dy: Tensor) -> None:
        dy = dy * part.scales.to(dy.dtype)[..., None]
        part.checked.append(dy.float().square().sum((1, 2)))
        x = torch.ones_like(x[..., :1]) if watched.kind == "bias" else x
        left, right = (x, dy) if watched.kind == "transposed" else (dy, x)
        found[watched.name] = left[real], right[real]

    with token_gradients(model, chosen.maps, keep):
        part.checked.append(backward_example_losses(model, part.batch))
    return found


def _chosen(
    model: Any, directions: Mapping[str, Tensor], parameters: ChosenParameters | None
) -> ChosenParameters:
    """Return the parameters that there are directions for."""
    every = lora_maps(model) if parameters is None else parameters
    for name, direction in directions.items():
        size = every.sizes.get(name)
        if direction.ndim != 2 or len(direction) != size:
            raise ModelError(
                f"a direction of shape {list(direction.shape)} for {name}",
                expected="a parameter that is measured in" if size is None else f"[{size}, k]",
                remedy="take the probe directions from the same model and parameters",
            )
    maps = tuple(watched for watched in every.maps if watched.name in directions)
    return ChosenParameters(maps, {n: p for n, p in every.others.items() if n in directions})
