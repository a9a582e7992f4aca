"""Perplexity per token and per byte, by sliding windows over long texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from biasdiff.data.encoding import Encoding, encode_text
from biasdiff.data.sources import wikitext2
from biasdiff.data.sources.corpus import Record
from biasdiff.data.sources.finding import get_files
from biasdiff.evaluation.benchmark import (
    Benchmark,
    Inputs,
    Subject,
    clusters_of,
    require_same,
    without_options,
)
from biasdiff.functional.losses import IGNORED
from biasdiff.functional.statistics import bootstrap_interval, paired_p
from biasdiff.options import Options, checked_options, wrong_option
from biasdiff.results import Metric
from biasdiff.training.token_scores import score_tokens

STRIDE_SHARE = 0.5
"""Of a window's length; the first half of every later window is context only."""


def windows(encoding: Encoding, max_length: int) -> list[Encoding]:
    """Divide a text into windows of the model's context, each target in exactly one.

    A later window repeats the half of the context before its targets, so every target has at least
    that much before it; the start token stands in the first window only.

    Args:
        encoding: A text.
        max_length: Tokens of a window at most.
    """
    if len(encoding) <= max_length:
        return [encoding]
    stride = max(1, int(max_length * STRIDE_SHARE))
    found = [Encoding(encoding.input_ids[:max_length], encoding.labels[:max_length])]
    end = max_length
    while end < len(encoding):
        new_end = min(end + stride, len(encoding))
        start = new_end - max_length
        labels = [IGNORED] * (end - start) + encoding.labels[end:new_end]
        found.append(Encoding(encoding.input_ids[start:new_end], labels))
        end = new_end
    return found


def score_texts(
    subject: Subject,
    texts: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    max_tokens: int | None = None,
    name: str = "perplexity",
) -> pd.DataFrame:
    """Return ``row``, ``negative_log_likelihood`` (nats), ``tokens`` and ``bytes`` of each text.

    The start token is a condition, never a target; padding counts nowhere. Texts longer than the
    context are scored by `windows`.

    Args:
        subject: The model.
        texts: Running text.
        groups: What belongs together (the article of a paragraph), kept as ``group``.
        max_tokens: Stop before the text with which more targets than this would be scored.
        name: Shown with the progress.
    """
    encodings = [encode_text(subject.tokenizer, text) for text in texts]
    if max_tokens is not None:
        total = np.cumsum([e.targets for e in encodings])
        encodings = encodings[: max(1, int((total <= max_tokens).sum()))]
    parts = [windows(encoding, subject.max_length) for encoding in encodings]
    owners = [row for row, pieces in enumerate(parts) for _ in pieces]
    values = score_tokens(
        subject.model,
        [piece for pieces in parts for piece in pieces],
        max_tokens=max(subject.max_tokens, 1),
        description=name,
    )
    losses = np.zeros(len(parts))
    for row, scores in zip(owners, values, strict=True):
        losses[row] -= scores.sum()
    frame = pd.DataFrame(
        {
            "row": range(len(parts)),
            "negative_log_likelihood": losses,
            "tokens": [e.targets for e in encodings],
            "bytes": [len(text.encode()) for text in texts[: len(parts)]],
        }
    )
    if groups is not None:
        frame["group"] = list(groups[: len(parts)])
    return frame


def perplexity_metrics(scores: pd.DataFrame) -> dict[str, Metric]:
    """Return ``perplexity`` = exp(Σ NLL / Σ tokens), and ``perplexity_per_byte`` over Σ bytes.

    The second can be compared across tokenizers. Intervals resample texts, or what ``group`` names;
    n counts texts.
    """
    return {
        "perplexity": _perplexity(scores, "tokens"),
        "perplexity_per_byte": _perplexity(scores, "bytes"),
    }


def _perplexity(scores: pd.DataFrame, unit: str) -> Metric:
    losses = scores["negative_log_likelihood"].to_numpy(dtype=np.float64)
    units = scores[unit].to_numpy(dtype=np.float64)
    low, high = bootstrap_interval(losses, units, clusters=clusters_of(scores, "group"))
    mean = losses.sum() / units.sum() if units.sum() > 0 else math.nan
    with np.errstate(over="ignore"):  # a wrecked model's perplexity is infinite
        value, low, high = np.exp([mean, low, high]).tolist()
    return Metric(value, len(losses), "lower_is_better", interval=(low, high))


def compare_perplexity(after: pd.DataFrame, before: pd.DataFrame) -> dict[str, Metric]:
    """Return ``perplexity_ratio``, after / before, with paired interval and p of no change.

    Raises:
        DataError: If the frames are not of the same texts.
    """
    require_same(after, before)
    clusters = clusters_of(after, "group")
    change = (after["negative_log_likelihood"] - before["negative_log_likelihood"]).to_numpy(
        dtype=np.float64
    )
    tokens = after["tokens"].to_numpy(dtype=np.float64)
    low, high = bootstrap_interval(change, tokens, clusters=clusters)
    with np.errstate(over="ignore"):
        value, low, high = np.exp([change.sum() / tokens.sum(), low, high]).tolist()
    ratio = Metric(value, len(change), "lower_is_better", interval=(low, high))
    return {"perplexity_ratio": replace(ratio, p_value=paired_p(change, clusters))}


def _score_held_out(subject: Subject, inputs: Inputs) -> pd.DataFrame:
    return score_texts(subject, inputs.first(inputs.texts))


WIKITEXT_TOKENS = 50_000


def wikitext_tokens(given: Options) -> int:
    """Return after how many tokens to stop.

    Raises:
        ConfigError: If an option is unknown or out of range.
    """
    most = checked_options(given, "wikitext2", {"tokens": WIKITEXT_TOKENS})["tokens"]
    if type(most) is not int or most < 1:
        raise wrong_option("wikitext2", "tokens", most, "a whole number from 1")
    return most


def _wikitext_files(given: Options) -> Mapping[str, Path]:
    wikitext_tokens(given)
    return get_files(wikitext2.CORPUS)


def _score_wikitext(subject: Subject, inputs: Inputs) -> pd.DataFrame:
    records = [
        record
        for record in wikitext2.CORPUS.read(get_files(wikitext2.CORPUS))
        if isinstance(record, Record)
    ]
    chosen = inputs.first(records)
    return score_texts(
        subject,
        [record.text for record in chosen],
        groups=[record.group for record in chosen],
        max_tokens=wikitext_tokens(inputs.options_of("wikitext2")),
        name="wikitext2",
    )


PERPLEXITY = Benchmark(
    name="perplexity",
    title="held-out texts",
    score=_score_held_out,
    aggregate=perplexity_metrics,
    compare=compare_perplexity,
    files=without_options("perplexity"),
)
WIKITEXT2 = Benchmark(
    name="wikitext2",
    title="WikiText-2",
    score=_score_wikitext,
    aggregate=perplexity_metrics,
    compare=compare_perplexity,
    files=_wikitext_files,
    core=True,
)
"""Paragraphs without <unk>, validation then test, up to 50,000 tokens; de-tokenised, so its figures
are not those of papers that score the tokenised file with its headings."""
