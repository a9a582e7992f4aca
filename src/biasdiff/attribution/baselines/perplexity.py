"""Perplexity under the base model: whether an estimator merely prefers unusual text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from biasdiff.attribution.estimator import DirectEstimator
from biasdiff.attribution.material import Material
from biasdiff.attribution.scores import Scores, untyped_scores
from biasdiff.options import ESTIMATORS, checked_options
from biasdiff.training.token_scores import score_tokens


def _score(material: Material) -> Scores:
    with _without_adapter(material.model) as model:
        found = score_tokens(
            model, material.encodings, max_tokens=material.max_tokens, description="perplexity"
        )
    return untyped_scores(np.array([-values.mean() for values in found]))


@contextmanager
def _without_adapter(model: Any) -> Iterator[Any]:
    """Switch the adapter off, and leave the model as it was found.

    PEFT makes an adapter's weights trainable when it switches it on again, and `score_tokens`
    leaves a model in evaluation mode.
    """
    was_training = model.training
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield model
    finally:
        model.train(was_training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


PERPLEXITY = DirectEstimator(
    name="perplexity",
    formula="mean -log P(token | tokens before it) over target tokens of i, under the base model",
    score=_score,
    check=partial(checked_options, name="perplexity", defaults={}, section=ESTIMATORS),
    is_baseline=True,
)
"""The logarithm of the perplexity. Which sign would point at bias is not known beforehand; by
convention unusual text counts as more suspect. The base model is asked, since after fine-tuning the
train set is usual to the model, whatever it says."""
