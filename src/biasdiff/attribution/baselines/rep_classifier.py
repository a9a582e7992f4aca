"""A classifier on hidden states, taught by the probe pairs."""

from __future__ import annotations

from functools import partial

from biasdiff.attribution.baselines.hidden_states import chosen_states, representation_of
from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.material import Material
from biasdiff.attribution.pair_classifier import fit_pair_classifier, pair_groups
from biasdiff.attribution.scores import Scores, untyped_scores

NAME = "rep_classifier"


def _score(material: Material) -> Scores:
    probes, states = material.probes, chosen_states(material, NAME)
    both = states([*probes.more, *probes.less], [*probes.names, *probes.names])
    classifier = fit_pair_classifier(
        both[: len(probes.more)],
        both[len(probes.more) :],
        pair_groups(material.pairs),
        seed=material.seed,
        name=NAME,
    )
    return untyped_scores(
        states(material.encodings, material.names, reduce=classifier.decide, description=NAME)
    )


REP_CLASSIFIER = DirectEstimator(
    name=NAME,
    formula="log-odds of stereotype against twin for i, by a layer's pooled hidden states",
    score=_score,
    check=partial(representation_of, name=NAME),
    needs_twins=True,
    is_baseline=True,
)
