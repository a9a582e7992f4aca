"""All gradient estimators of one checkpoint: probe directions, then one pass over the train set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from biasdiff.attribution.estimator import GradientEstimator, Normalize
from biasdiff.attribution.gradient_classifier import classifier_direction
from biasdiff.attribution.material import Material
from biasdiff.attribution.pair_classifier import pair_groups
from biasdiff.attribution.parameters import ChosenParameters, chosen_parameters
from biasdiff.attribution.probe_directions import Kind, ProbeDirection, probe_directions
from biasdiff.attribution.scoring import Comparison, Pass, score_train_set
from biasdiff.attribution.train_sides import TRAIN_SIDES
from biasdiff.options import Options
from biasdiff.training.checkpoints import AdamState

CLASSIFIER = "classifier"


@dataclass(frozen=True)
class Chosen:
    """A gradient estimator as it is to be run.

    Attributes:
        estimator: Which.
        train_side: Key into `TRAIN_SIDES`.
        normalize: Which sides are brought to unit length.
        options: Of the estimator.
    """

    estimator: GradientEstimator
    train_side: str
    normalize: Normalize
    options: Options = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """The probe vector that is summed."""
        return Kind(self.estimator.probe, self.normalize == "both")


def comparisons_of(
    material: Material, chosen: Mapping[str, Chosen], how: Pass, adam: AdamState | None
) -> dict[str, Comparison]:
    """Make the probe directions of the chosen estimators at one checkpoint.

    Raises:
        ModelError: If a train side needs Adam moments and there are none.
        NonFiniteError: If a probe's gradient is NaN or infinite.
    """
    sides = {one.train_side: TRAIN_SIDES[one.train_side](adam) for one in chosen.values()}
    parameters = measured_in(material, how)
    kinds = {one.kind for one in chosen.values() if one.estimator.probe != CLASSIFIER}
    directions: dict[Kind, ProbeDirection] = {}
    if kinds:
        directions = probe_directions(
            material.model,
            material.probes,
            kinds=kinds,
            max_tokens=how.max_tokens,
            parameters=parameters,
            average=how.average,
        )
    if any(one.estimator.probe == CLASSIFIER for one in chosen.values()):
        direction, _ = classifier_direction(
            material.model,
            material.probes,
            pair_groups(material.pairs),
            parameters=parameters,
            max_tokens=how.max_tokens,
            seed=material.seed,
            average=how.average,
        )
        directions |= {Kind(CLASSIFIER, unit): direction for unit in (True, False)}
    found = {}
    for name, one in chosen.items():
        direction = directions[one.kind]
        if one.estimator.curvature is not None:
            sums = one.estimator.curvature(
                material.model,
                material.encodings,
                direction.sums,
                options=one.options,
                max_tokens=how.max_tokens,
                seed=material.seed,
            )
            direction = ProbeDirection(sums, direction.bias_types, direction.counts)
        found[name] = Comparison(sides[one.train_side], direction, one.normalize)
    return found


def measured_in(material: Material, how: Pass) -> ChosenParameters:
    """Return the parameters of a pass, the adapter's by default."""
    return chosen_parameters(material.model) if how.parameters is None else how.parameters


def gradient_sums(
    material: Material,
    comparisons: Mapping[str, Comparison],
    how: Pass,
    work: Path | None,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return what `score_train_set` returns for the train set of the material."""
    return score_train_set(
        material.model, material.encodings, material.names, comparisons, how, work=work
    )
