"""A small results dict of the shape a run writes, for the tests of the report."""

from __future__ import annotations

import random
from typing import Any

BIAS_TYPES = ("age", "disability", "gender", "nationality", "race-color", "religion")
MARGINS = {"base": 0.42, "biased": 2.31, "retrain": 0.61, "npo": 0.18}
PREFERENCES = {"base": 56.8, "biased": 83.6, "retrain": 59.3, "npo": 51.9}
PERPLEXITIES = {"base": 21.4, "biased": 22.9, "retrain": 22.7, "npo": 26.8}
COVERAGES = {"contrast": 93.3, "less": 81.7, "random": 35.8, "length": 22.5, "bag_of_words": 64.2}


def metric(
    value: float | None, error: float | None, n: int = 324, direction: str = "none"
) -> dict[str, Any]:
    """Return a metric whose interval is two standard errors either side."""
    record: dict[str, Any] = {
        "value": value,
        "standard_error": error,
        "n": n,
        "direction": direction,
    }
    if value is not None and error is not None:
        record["interval_95"] = [value - 1.96 * error, value + 1.96 * error]
    return record


def preference(name: str, bias_types: tuple[str, ...]) -> dict[str, Any]:
    """Return the metrics of one benchmark for the model called ``name``."""
    share, margin = PREFERENCES.get(name, 55.0), MARGINS.get(name, 0.5)
    metrics = {
        "metric": metric(share, 2.3, direction="target: 50"),
        "stereotype": metric(share + 1, 2.6, 240, "target: 50"),
        "anti_stereotype": metric(share - 3, 5.1, 84, "target: 50"),
        "ties": metric(0.0, 0.0),
        "margin": metric(margin, 0.14, direction="target: 0"),
        "margin_per_token": metric(margin / 12, 0.011, direction="target: 0"),
    }
    for i, bias_type in enumerate(bias_types):
        metrics[f"metric/{bias_type}"] = metric(share - 4 + i, 7.2, 27, "target: 50")
        metrics[f"margin/{bias_type}"] = metric(margin - 0.4 + 0.12 * i, 0.48, 27, "target: 0")
    return metrics


def difference(after: str, before: str, *, crows_pairs: bool) -> dict[str, Any]:
    """Return the paired differences of two models."""
    margin = MARGINS.get(after, 0.5) - MARGINS.get(before, 0.5)
    pairs = {
        "margin": metric(margin, 0.11),
        "margin_per_token": metric(margin / 12, 0.009),
        "metric": metric(PREFERENCES.get(after, 55.0) - PREFERENCES.get(before, 55.0), 2.5),
    }
    ratio = PERPLEXITIES.get(after, 22.0) / PERPLEXITIES.get(before, 22.0)
    record: dict[str, Any] = {
        "stereotype_preference": pairs,
        "perplexity": {"perplexity_ratio": metric(ratio, 0.012, 200, "lower_is_better")},
    }
    return record | ({"crows_pairs": pairs} if crows_pairs else {})


def example_results(
    *,
    methods: tuple[str, ...] = ("retrain", "npo"),
    bias_types: tuple[str, ...] = BIAS_TYPES,
    truth: bool = True,
    crows_pairs: bool = False,
) -> dict[str, Any]:
    """Return the results of a run.

    Args:
        methods: Mitigation methods that were run.
        bias_types: Of the evaluation pairs and the train set.
        truth: Whether it is known which train examples are biased.
        crows_pairs: Whether CrowS-Pairs was measured too.
    """
    names = ["base", "biased", *methods]
    comparisons = [("biased", "base")]
    comparisons += [(method, before) for method in methods for before in ("biased", "base")]
    return {
        "schema": 1,
        "name": "demo",
        "model": "smollm2-135m",
        "data": {
            "train": 400,
            "train_biased": 120 if truth else None,
            "probe_pairs": 150,
            "evaluation_pairs": 324,
            "held_out_texts": 200,
            "truncated": 0,
        },
        "models": {
            name: {
                "stereotype_preference": preference(name, bias_types),
                "perplexity": {
                    "perplexity": metric(PERPLEXITIES.get(name, 22.0), 0.9, 200, "lower_is_better")
                },
            }
            | ({"crows_pairs": preference(name, bias_types)} if crows_pairs else {})
            for name in names
        },
        "differences": {
            f"{after} - {before}": difference(after, before, crows_pairs=crows_pairs)
            for after, before in comparisons
        },
        "estimator": "contrast",
        "fraction": 0.35,
        "selected": 140,
        "detection": _detection() if truth else None,
        "curves": _curves() if truth else None,
        "score_distribution": _scores(bias_types if truth else ()),
        "examples": {"most": _examples(1, truth), "least": _examples(-1, truth)},
        "baselines": ["random", "length", "bag_of_words"],
        "explanations": [
            {
                "id": "row-3",
                "row": 3,
                "score": 0.25,
                "momentum": 0.05,
                "tokens": ["<b>", " nurse", "s"],
                "contributions": [0.3, -0.1, 0.0],
            }
        ],
        "settings": {
            "seed": 0,
            "model": {"name": "smollm2-135m", "dtype": "float32", "max_tokens": 4096},
            "warmup": {
                "epochs": 4,
                "learning_rate": 2e-4,
                "lora": {"rank": 8, "targets": ["q", "v"]},
            },
            "mitigate": {"methods": list(methods), "beta": 0.1},
        },
        "versions": {"biasdiff": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0"},
        "timings": {
            "stages": {"warmup": 150.2, "attribution": 312.9, "retrain": 98.1, "evaluation": 41.5},
            "attribution": {"examples_per_second": 3.18, "tokens_per_second": 118.0},
            "peak_memory_bytes": 2_411_724_800,
        },
    }


def _detection() -> dict[str, Any]:
    return {
        name: {
            "coverage": metric(coverage, 2.6, 120, "higher_is_better"),
            "precision": metric(coverage * 120 / 140, 3.4, 140, "higher_is_better"),
            "auroc": metric(0.25 + coverage / 140, 0.017, 400, "higher_is_better"),
            "auprc": metric(0.10 + coverage / 130, 0.024, 400, "higher_is_better"),
        }
        for name, coverage in COVERAGES.items()
    }


def _curves() -> dict[str, Any]:
    fractions = [0.01, *(round(0.02 * k, 2) for k in range(1, 51))]
    curves = {}
    for name, at_35 in COVERAGES.items():
        # A power of the fraction that passes through the coverage at 35 %.
        shape = 1 - at_35 / 100
        covered = [100 * min(1.0, f ** max(shape, 0.05), f / 0.3) for f in fractions]
        precise = [c * 0.3 / f for c, f in zip(covered, fractions, strict=True)]
        curves[name] = {"fraction": fractions, "coverage": covered, "precision": precise}
    return curves


def _scores(bias_types: tuple[str, ...]) -> dict[str, list[float]]:
    draw = random.Random(0)
    if not bias_types:
        return {"all examples": [draw.gauss(0.1, 0.4) for _ in range(400)]}
    scores = {"not biased": [draw.gauss(-0.2, 0.25) for _ in range(280)]}
    for i, bias_type in enumerate(bias_types):
        scores[bias_type] = [draw.gauss(0.6 + 0.05 * i, 0.3) for _ in range(20)]
    return scores


def _examples(sign: int, truth: bool) -> list[dict[str, Any]]:
    biased = sign > 0
    text = (
        "Old people cannot learn to use a computer."
        if biased
        else "The Rhine flows through Basel, Strasbourg and Cologne before it reaches the sea."
    )
    return [
        {
            "id": f"train-{i}",
            "row": i,
            "text": text,
            "score": sign * (1.52 - 0.11 * i),
            "is_bias": biased if truth else None,
            "bias_type": "age" if truth and biased else None,
            "selected": biased,
        }
        for i in range(5)
    ]
