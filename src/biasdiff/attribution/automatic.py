"""The estimator that probe pairs themselves recommend, and a stack of several."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from biasdiff.attribution.estimator import DirectEstimator, Estimator, GradientEstimator
from biasdiff.attribution.gradient_pass import Chosen, comparisons_of, gradient_sums
from biasdiff.attribution.material import Material
from biasdiff.attribution.pair_classifier import (
    fit_pair_classifier,
    pair_groups,
    paired_accuracy,
)
from biasdiff.attribution.scores import Floats, Scores, typed_scores, untyped_scores
from biasdiff.attribution.scoring import Pass
from biasdiff.data.records import TrainExample
from biasdiff.errors import DataError
from biasdiff.options import ESTIMATORS as SECTION
from biasdiff.options import Options, checked_options, wrong_option
from biasdiff.progress import say

CANDIDATES = (
    "contrast",
    "contrast_classifier",
    "adapter_contrast",
    "rep_classifier",
    "tfidf_classifier",
)
"""Those that tell a sentence from its twin; the rest see style and topic, which twins share."""
FOLDS = 2
FEWEST = 4
DEFAULTS: Mapping[str, Any] = {"candidates": CANDIDATES, "lexical": True, "settings": {}}
"""``candidates``: names of estimators that need no Adam moments; ``lexical``: False leaves out
those that look at words alone; ``settings``: options of the candidates, by name."""


def automatic_settings(given: Options) -> dict[str, Any]:
    """Return `DEFAULTS` with what is set otherwise.

    Raises:
        ConfigError: If a setting is unknown or out of range.
    """
    options = checked_options(given, "auto", DEFAULTS, section=SECTION)
    names, known = options["candidates"], _known()
    listed = isinstance(names, list | tuple) and names and all(name in known for name in names)
    if not listed:
        expected = f"a list of some of {', '.join(known)}"
        raise wrong_option("auto", "candidates", names, expected, section=SECTION)
    if not isinstance(options["lexical"], bool):
        raise wrong_option("auto", "lexical", options["lexical"], "true or false", section=SECTION)
    for name, settings in options["settings"].items():
        if name not in names:
            expected = f"settings of some of {', '.join(names)}"
            raise wrong_option("auto", "settings", name, expected, section=SECTION)
        known[name].check(settings)
    return options


def _known() -> dict[str, Estimator]:
    """Return all estimators that may be candidates."""
    from biasdiff.attribution.registry import ESTIMATORS

    return {
        name: estimator
        for name, estimator in ESTIMATORS.items()
        if name not in {AUTO.name, STACK.name}
        and not (isinstance(estimator, GradientEstimator) and estimator.train_side != "sgd")
    }


def choose_automatically(material: Material) -> Scores:
    """Score with the candidate that best tells held-out stereotypes from their twins.

    Two-fold cross-validation over the probe pairs, a stereotype never in both folds: a candidate is
    given one half as its probe set and scores both sentences of every pair of the other half as if
    they were train examples. It is judged by the share of pairs whose stereotype sentence is
    scored above its twin; ties count half. The train set is not looked at before the choice. What
    tells twins apart need not be what marks biased examples in data where style differs, too.

    Raises:
        DataError: If the probe pairs make too few stereotypes.
    """
    settings = automatic_settings(material.options)
    names = _candidates(settings)
    held_out = held_out_scores(material, names, settings["settings"])
    m = len(material.pairs)
    accuracies = {name: paired_accuracy(held_out[name][:m], held_out[name][m:]) for name in names}
    best = max(names, key=lambda name: accuracies[name])
    spread = 100 * float(np.sqrt(accuracies[best] * (1 - accuracies[best]) / m))
    found = ", ".join(f"{name} {100 * accuracies[name]:.1f} %" for name in names)
    say(f"  auto: of held-out pairs, {found}")
    say(f"  auto: {best} is chosen (standard error {spread:.1f} points)")
    scores = score_with(best, material, settings["settings"].get(best, {}))
    return replace(scores, notes={"chosen": best, "held_out_accuracy": accuracies})


def stack(material: Material) -> Scores:
    """Add up the candidates' standard scores with weights fitted on held-out probe pairs.

    The weights are those of a logistic regression of stereotype against twin on the candidates'
    held-out scores (as in `choose_automatically`). The train set's scores are brought to mean 0 and
    variance 1 over the train set before they are weighted.

    Raises:
        DataError: If the probe pairs make too few stereotypes.
    """
    settings = automatic_settings(material.options)
    names = _candidates(settings)
    held_out = held_out_scores(material, names, settings["settings"])
    m = len(material.pairs)
    columns = np.stack([standard_scores(held_out[name]) for name in names], axis=1)
    groups = pair_groups(material.pairs)
    fitted = fit_pair_classifier(
        columns[:m], columns[m:], groups, seed=material.seed, standardise=False, name="stack"
    )
    total = np.zeros(len(material.examples))
    for name, weight in zip(names, fitted.weights.tolist(), strict=True):
        own = score_with(name, material, settings["settings"].get(name, {}))
        total += weight * standard_scores(own.overall)
    notes = {"weights": dict(zip(names, fitted.weights.tolist(), strict=True))}
    say(f"  stack: {notes['weights']}")
    return replace(untyped_scores(total), notes=notes)


def _candidates(settings: Mapping[str, Any]) -> list[str]:
    known = _known()
    return [
        name
        for name in settings["candidates"]
        if settings["lexical"] or not getattr(known[name], "is_lexical", False)
    ]


def held_out_scores(
    material: Material, names: Sequence[str], settings: Mapping[str, Options]
) -> dict[str, Floats]:
    """Return out-of-fold scores of all stereotype sentences, then of all twins, [2m] by name.

    Raises:
        DataError: If the pairs make fewer than four stereotypes.
    """
    groups = pair_groups(material.pairs)
    distinct = sorted(set(groups))
    if len(distinct) < FEWEST:
        raise DataError(
            f"the probe pairs make {len(distinct)} stereotypes",
            expected=f"at least {FEWEST}, half of which can be held out",
            remedy="give more probe pairs, or name an estimator instead of auto",
        )
    random.Random(material.seed).shuffle(distinct)
    fold = {name: number % FOLDS for number, name in enumerate(distinct)}
    m = len(groups)
    found = {name: np.empty(2 * m) for name in names}
    for number in range(FOLDS):
        inside = [i for i, group in enumerate(groups) if fold[group] != number]
        outside = [i for i, group in enumerate(groups) if fold[group] == number]
        part = _part(material, inside, outside)
        for name in names:
            say(f"  auto: {name}, fold {number + 1} of {FOLDS}")
            scores = score_with(name, part, settings.get(name, {})).overall
            found[name][outside] = scores[: len(outside)]
            found[name][[m + i for i in outside]] = scores[len(outside) :]
    return found


def _part(material: Material, inside: Sequence[int], outside: Sequence[int]) -> Material:
    """Return some pairs as the probe set, and both sentences of others as the train set."""
    probes = material.probes
    texts = [material.pairs[i].sent_more for i in outside]
    texts += [material.pairs[i].sent_less for i in outside]
    return replace(
        material,
        examples=[TrainExample(f"held out {n}", n, text=text) for n, text in enumerate(texts)],
        encodings=[probes.more[i] for i in outside] + [probes.less[i] for i in outside],
        pairs=[material.pairs[i] for i in inside],
        probes=probes.only(inside),
        work=None,
    )


def score_with(name: str, material: Material, options: Options) -> Scores:
    """Return the scores of any estimator that needs no Adam moments, on its own."""
    estimator = _known()[name]
    if isinstance(estimator, DirectEstimator):
        work = None if material.work is None else material.work / name
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
        return estimator.score(replace(material, options=options, work=work))
    chosen = {name: Chosen(estimator, estimator.train_side, estimator.normalize, options)}
    how = Pass(max_tokens=material.max_tokens)
    comparisons = comparisons_of(material, chosen, how, None)
    sums, _ = gradient_sums(material, comparisons, how, None)
    probe = comparisons[name].probe
    values = sums[name].double().numpy()
    return typed_scores(values, probe.counts, probe.bias_types, aggregate=material.aggregate)


def standard_scores(values: Floats) -> Floats:
    """Return values at mean 0 and variance 1; zeros where all are the same."""
    spread = values.std()
    centred = values - values.mean()
    return centred / spread if spread > 0 else np.zeros_like(centred)


AUTO = DirectEstimator(
    name="auto",
    formula="the score of the candidate that best tells held-out stereotypes from their twins",
    score=choose_automatically,
    check=automatic_settings,
    needs_twins=True,
)
STACK = DirectEstimator(
    name="stack",
    formula="weighted sum of the candidates' standard scores, weights fitted on held-out pairs",
    score=stack,
    check=automatic_settings,
    needs_twins=True,
)
