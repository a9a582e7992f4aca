"""Perplexity per token on texts the model has not been trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from biasdiff.data.encoding import encode_text, say_how_many_cut
from biasdiff.functional.statistics import bootstrap_interval
from biasdiff.results import Metric
from biasdiff.training.log_likelihood import log_likelihoods


def score_texts(
    model: Any, tokenizer: Any, texts: Sequence[str], *, max_tokens: int, max_length: int
) -> pd.DataFrame:
    """Return ``row``, ``negative_log_likelihood`` (nats) and ``tokens`` of each text.

    The start token is a condition, never a target; padding counts nowhere. Texts beyond
    ``max_length`` tokens are cut.
    """
    whole = [encode_text(tokenizer, text) for text in texts]
    cut = [encoding.cut(max_length) for encoding in whole]
    say_how_many_cut(whole, max_length)
    values = log_likelihoods(model, cut, max_tokens=max_tokens, description="perplexity")
    return pd.DataFrame(
        {
            "row": range(len(cut)),
            "negative_log_likelihood": -values,
            "tokens": [e.targets for e in cut],
        }
    )


def perplexity_metric(scores: pd.DataFrame) -> Metric:
    """Return exp(Σ NLL / Σ tokens) with a bootstrap interval over texts; n counts texts."""
    losses = scores["negative_log_likelihood"].to_numpy(dtype=np.float64)
    tokens = scores["tokens"].to_numpy(dtype=np.float64)
    low, high = bootstrap_interval(losses, tokens)
    mean = losses.sum() / tokens.sum() if tokens.sum() > 0 else math.nan
    with np.errstate(over="ignore"):  # a wrecked model's perplexity is infinite
        value, low, high = np.exp([mean, low, high]).tolist()
    return Metric(value, len(losses), "lower_is_better", interval=(low, high))
