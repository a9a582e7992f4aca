"""WEAT and SEAT: associations between embeddings of words and of sentences.

A sentence's embedding is the mean of the last hidden states (after the final norm) of its tokens,
without start token and other special tokens, as bias-bench's for GPT-2; bias-bench then takes the
same effect size and permutation test (`biasdiff.functional.association`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.data.sources.finding import get_files
from biasdiff.data.sources.seat import CORPUS, SENTENCE_TESTS, WORD_TESTS, AssociationTest, tests
from biasdiff.errors import DataError, NonFiniteError
from biasdiff.evaluation.benchmark import Benchmark, Inputs, Subject, require_same
from biasdiff.functional.association import (
    associations,
    effect_size,
    embedding_of,
    parametric_p,
    permutation_p,
    resampled_effect_sizes,
)
from biasdiff.functional.losses import IGNORED
from biasdiff.functional.resampling import bootstrap_p, centred_interval, draws, spread
from biasdiff.functional.statistics import Floats, holm
from biasdiff.options import Options, checked_options, wrong_option
from biasdiff.progress import task
from biasdiff.results import Metric

_TYPES = {
    "none": ("weat1", "weat2"),
    "race-color": ("weat3", "weat3b", "weat4", "weat5", "weat5b", "angry"),
    "gender": ("weat6", "weat6b", "weat7", "weat7b", "weat8", "weat8b", "heilman"),
    "disability": ("weat9",),
    "age": ("weat10",),
    "religion": ("religion1", "religion1b", "religion2", "religion2b"),
}
BIAS_TYPES: dict[str, str] = {
    test: bias_type
    for test in (*WORD_TESTS, *SENTENCE_TESTS)
    for bias_type, stems in _TYPES.items()
    if test.removeprefix("sent-").split("_")[0] in stems
}
"""What each of the 50 tests is about; ``none`` for flowers and instruments."""
SOCIAL_TESTS: dict[str, tuple[str, ...]] = {
    bias_type: tuple(
        test for test in SENTENCE_TESTS if BIAS_TYPES[test] == bias_type and "heilman" not in test
    )
    for bias_type in ("gender", "race-color", "religion")
}
"""The sentence tests that bias-bench's tables average, 6, 7 and 4."""
MEAN = "mean_abs_d"
DEFAULTS = {"embedding": "mean", "layer": -1, "parametric": False}
_EMBEDDINGS = ("mean", "last")


def embed(
    subject: Subject, texts: Sequence[str], *, embedding: str = "mean", layer: int = -1
) -> Tensor:
    """Return a vector for every text, [n, h], on the CPU in float32 or better.

    Args:
        subject: The model.
        texts: Words or sentences, encoded without start token or any other special token.
        embedding: ``mean`` over the tokens, or the ``last`` token.
        layer: 0 for the input embeddings, k for the states after block k, -1 for the last, which
            with most architectures are those after the final norm.

    Raises:
        DataError: If a text has no token, or more than the context holds.
        ConfigError: If the model has no such layer.
    """
    encodings = [_encode(subject, text) for text in texts]
    decoder = subject.model.get_decoder()
    device = next(subject.model.parameters()).device
    subject.model.eval()
    found: list[Tensor] = [torch.empty(0)] * len(encodings)
    with task("seat", len(encodings)) as progress, torch.inference_mode():
        lengths = [len(e) for e in encodings]
        for members in token_budget_batches(lengths, max_tokens=subject.max_tokens):
            batch = make_batch([encodings[i] for i in members], device=device)
            inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
            output = decoder(**inputs, use_cache=False, output_hidden_states=layer != -1)
            states = output.last_hidden_state if layer == -1 else _layer(output, layer)
            vectors = embedding_of(states, batch["attention_mask"], embedding).cpu()
            for index, vector in zip(members, vectors, strict=True):
                found[index] = vector
            progress.advance(len(members))
    return torch.stack(found)


def _encode(subject: Subject, text: str) -> Encoding:
    tokens = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not 0 < len(tokens) <= subject.max_length:
        raise DataError(
            f"SEAT's {text[:60]!r} has {len(tokens)} tokens",
            expected=f"1 to {subject.max_length}, the context length",
            remedy="use a model with a longer context, or the original files",
        )
    return Encoding(tokens, [IGNORED] * len(tokens))


def _layer(output: Any, layer: int) -> Tensor:
    states: Sequence[Tensor] = output.hidden_states
    if layer >= len(states):
        raise wrong_option("seat", "layer", layer, f"-1, or 0 to {len(states) - 1} for this model")
    return states[layer]


def settings_of(given: Options) -> dict[str, Any]:
    """Return `DEFAULTS` with what is set otherwise.

    Raises:
        ConfigError: If a setting is unknown or out of range.
    """
    options = checked_options(given, "seat", DEFAULTS)
    embedding, layer, parametric = (options[name] for name in DEFAULTS)
    if embedding not in _EMBEDDINGS:
        raise wrong_option("seat", "embedding", embedding, " or ".join(_EMBEDDINGS))
    if type(layer) is not int or layer < -1:
        raise wrong_option("seat", "layer", layer, "-1 for the last, or 0 and up")
    if type(parametric) is not bool:
        raise wrong_option("seat", "parametric", parametric, "true or false")
    return options


def _files(given: Options) -> Mapping[str, Path]:
    settings_of(given)
    return get_files(CORPUS)


def _score(subject: Subject, inputs: Inputs) -> pd.DataFrame:
    settings = settings_of(inputs.options_of("seat"))
    chosen = [_limited(test, inputs) for test in tests(get_files(CORPUS))]
    frame = score_tests(subject, chosen, embedding=settings["embedding"], layer=settings["layer"])
    return frame.assign(parametric=settings["parametric"], seed=inputs.seed)


def _limited(test: AssociationTest, inputs: Inputs) -> AssociationTest:
    return replace(
        test,
        targ1=tuple(inputs.first(test.targ1)),
        targ2=tuple(inputs.first(test.targ2)),
        attr1=tuple(inputs.first(test.attr1)),
        attr2=tuple(inputs.first(test.attr2)),
    )


def score_tests(
    subject: Subject,
    chosen: Sequence[AssociationTest],
    *,
    embedding: str = "mean",
    layer: int = -1,
) -> pd.DataFrame:
    """Return the association of every target sentence of every test.

    Each distinct sentence is encoded once, however many tests it stands in.

    Returns:
        One row per test and target: ``row``, ``test``, ``role`` (``targ1`` for X, ``targ2`` for
        Y), ``category``, ``bias_type``, ``sentence`` (its number among the distinct ones, so that
        two tests on the same sentences can be told) and ``association``, s(w).

    Raises:
        NonFiniteError: If an association is not finite.
    """
    sets = [(test.targ1, test.targ2, test.attr1, test.attr2) for test in chosen]
    numbers: dict[str, int] = {}
    for test_sets in sets:
        for text in (text for examples in test_sets for text in examples):
            numbers.setdefault(text, len(numbers))
    vectors = embed(subject, list(numbers), embedding=embedding, layer=layer)
    rows = []
    for test, test_sets in zip(chosen, sets, strict=True):
        x, y, a, b = ([numbers[text] for text in examples] for examples in test_sets)
        scores = associations(vectors[[*x, *y]], vectors[a], vectors[b])
        if not np.isfinite(scores).all():
            raise NonFiniteError(
                f"{int((~np.isfinite(scores)).sum())} associations of {test.name} are not finite",
                expected="finite embeddings that are not zero",
                remedy="check the model for NaN weights, use float32, or choose another layer",
            )
        for role, category, places, values in (
            ("targ1", test.categories[0], x, scores[: len(x)]),
            ("targ2", test.categories[1], y, scores[len(x) :]),
        ):
            rows += [
                {
                    "row": f"{test.name}-{role}-{number}",
                    "test": test.name,
                    "role": role,
                    "category": category,
                    "bias_type": BIAS_TYPES.get(test.name, "none"),
                    "sentence": place,
                    "association": float(value),
                }
                for number, (place, value) in enumerate(zip(places, values, strict=True))
            ]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Test:
    """Associations of one test, each side in the order of its sentences' numbers."""

    first: Floats
    second: Floats
    first_key: tuple[int, ...]
    second_key: tuple[int, ...]

    @property
    def scores(self) -> Floats:
        return np.concatenate([self.first, self.second])

    @property
    def effect_size(self) -> float:
        return effect_size(self.first, self.second)

    @property
    def sizes(self) -> tuple[int, int]:
        return len(self.first), len(self.second)

    def replicates(self) -> Floats:
        """Return effect sizes of resamples; tests on the same sentences are resampled alike."""
        if min(self.sizes) == 0:
            return np.full(1, np.nan)
        x, y = self.sizes
        return resampled_effect_sizes(
            self.first, self.second, draws(x, key=self.first_key), draws(y, key=self.second_key)
        )


def _read(frame: pd.DataFrame) -> dict[str, _Test]:
    """Return the tests of a frame by name, in its order."""
    found = {}
    ordered = frame.sort_values("sentence", kind="stable")
    for name in dict.fromkeys(frame["test"].tolist()):
        part = ordered[ordered["test"] == name]
        sides = [part[part["role"] == role] for role in ("targ1", "targ2")]
        values = [side["association"].to_numpy(dtype=np.float64) for side in sides]
        keys = [tuple(side["sentence"].tolist()) for side in sides]
        found[str(name)] = _Test(values[0], values[1], keys[0], keys[1])
    return found


def seat_metrics(scores: pd.DataFrame) -> dict[str, Metric]:
    """Aggregate the frame of a score.

    ``mean_abs_d``: mean of |d| over the social sentence tests (`SOCIAL_TESTS`), then of each bias
    type; n counts tests. ``d/NAME`` of every test: effect size, n targets, one-sided p of an
    association in the expected direction, after Holm over all tests as ``p_adjusted``.

    Intervals resample sentences within X and within Y, alike in all tests that share them, with
    attributes held fixed; they are moved by the bootstrap's bias (`centred_interval`).
    """
    found = _read(scores)
    replicates = {name: test.replicates() for name, test in found.items()}
    sizes = {name: test.effect_size for name, test in found.items()}
    metrics = _means(sizes, replicates)
    p_values = _p_values(scores, found)
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for name, test in found.items():
        metrics[f"d/{name}"] = Metric(
            sizes[name],
            sum(test.sizes),
            "target: 0",
            spread(replicates[name]),
            centred_interval(replicates[name], sizes[name]),
            p_values[name],
            adjusted[name],
        )
    return metrics


def _means(sizes: Mapping[str, float], replicates: Mapping[str, Floats]) -> dict[str, Metric]:
    found = {}
    for name, chosen in _groups(sizes).items():
        if not chosen:
            found[name] = Metric(float("nan"), 0, "lower_is_better")
            continue
        value = float(np.mean([abs(sizes[test]) for test in chosen]))
        drawn = np.mean([np.abs(replicates[test]) for test in chosen], axis=0)
        interval = centred_interval(drawn, value, low=0.0)
        found[name] = Metric(value, len(chosen), "lower_is_better", spread(drawn), interval)
    return found


def _groups(known: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the means and the tests at hand that each is over."""
    parts = {
        f"{MEAN}/{bias_type}": [test for test in names if test in known]
        for bias_type, names in SOCIAL_TESTS.items()
    }
    return {MEAN: [test for names in parts.values() for test in names], **parts}


def _p_values(frame: pd.DataFrame, found: Mapping[str, _Test]) -> dict[str, float]:
    """Return each test's p; tests of equal sizes share their partitions."""
    if bool(frame["parametric"].any()):
        return {name: parametric_p(test.scores, test.sizes[0]) for name, test in found.items()}
    seed = int(frame["seed"].iloc[0]) if len(frame) else 0
    by_sizes: dict[tuple[int, int], list[str]] = {}
    for name, test in found.items():
        by_sizes.setdefault(test.sizes, []).append(name)
    p_values = dict.fromkeys(found, float("nan"))
    for sizes, names in by_sizes.items():
        if min(sizes) > 0:
            scores = np.stack([found[name].scores for name in names])
            p_values |= zip(names, permutation_p(scores, sizes[0], seed=seed).tolist(), strict=True)
    return p_values


def compare_seat(after: pd.DataFrame, before: pd.DataFrame) -> dict[str, Metric]:
    """Return differences of absolute effect sizes, |d| after - |d| before; negative is better.

    ``mean_abs_d`` and its parts, and ``abs_d/NAME`` of every test, with p from a paired bootstrap
    over the same sentences, adjusted by Holm over the bias types and over the tests.

    Raises:
        DataError: If the frames are not of the same sentences.
    """
    require_same(after, before)
    a, b = _read(after), _read(before)
    a_drawn = {name: test.replicates() for name, test in a.items()}
    b_drawn = {name: test.replicates() for name, test in b.items()}
    values = {name: abs(a[name].effect_size) - abs(b[name].effect_size) for name in a}
    drawn = {name: np.abs(a_drawn[name]) - np.abs(b_drawn[name]) for name in a}
    groups = _groups(values)
    overall = groups.pop(MEAN)
    means = {
        name: _difference([values[t] for t in chosen], [drawn[t] for t in chosen], len(chosen))
        for name, chosen in groups.items()
    }
    tests_ = {
        f"abs_d/{name}": _difference([values[name]], [drawn[name]], sum(a[name].sizes))
        for name in a
    }
    total = _difference([values[t] for t in overall], [drawn[t] for t in overall], len(overall))
    return {MEAN: total, **_adjusted(means), **_adjusted(tests_)}


def _difference(values: Sequence[float], drawn: Sequence[Floats], n: int) -> Metric:
    if not values:
        return Metric(float("nan"), 0, "lower_is_better")
    value, replicates = float(np.mean(values)), np.mean(drawn, axis=0)
    return Metric(
        value,
        n,
        "lower_is_better",
        spread(replicates),
        centred_interval(replicates, value),
        bootstrap_p(replicates, value),
    )


def _adjusted(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    p_values = holm([m.p_value if m.p_value is not None else np.nan for m in metrics.values()])
    return {
        name: metric if metric.p_value is None else replace(metric, p_adjusted=p)
        for (name, metric), p in zip(metrics.items(), p_values, strict=True)
    }


BENCHMARK = Benchmark(
    name="seat",
    title="SEAT and WEAT",
    score=_score,
    aggregate=seat_metrics,
    compare=compare_seat,
    files=_files,
    core=True,
)
"""50 tests. A limit is one on each of the four sets of every test."""
