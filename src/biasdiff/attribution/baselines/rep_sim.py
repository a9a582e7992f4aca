"""Similarity of hidden states, the cheapest way of asking the model itself."""

from __future__ import annotations

from functools import partial

import numpy as np

from biasdiff.attribution.baselines.hidden_states import chosen_states, representation_of
from biasdiff.attribution.bias_types import membership
from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.material import Material
from biasdiff.attribution.scores import Floats, Scores

NAME = "rep_sim"


def _score(material: Material) -> Scores:
    probes, states = material.probes, chosen_states(material, NAME)
    types = membership(probes.bias_types)
    directions = states(probes.more, probes.names, reduce=_unit).T @ types.members
    sums = states(
        material.encodings,
        material.names,
        reduce=lambda vectors: _unit(vectors) @ directions,
        description=NAME,
    )
    return types.scores(sums, material.aggregate)


def _unit(vectors: Floats) -> Floats:
    """Bring rows to unit length; a zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


REP_SIM = DirectEstimator(
    name=NAME,
    formula="mean over probes j of cos(h_i, h(stereotype_j)), h a layer's pooled hidden states",
    score=_score,
    check=partial(representation_of, name=NAME),
    is_baseline=True,
)
