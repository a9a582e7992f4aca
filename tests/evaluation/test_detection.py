from __future__ import annotations

import math

import numpy as np
import pytest

from biasdiff.evaluation.detection import CURVE_FRACTIONS, detection_curve, detection_metrics

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
TRUTH = np.array([1, 0, 1, 0, 0, 0, 1, 0, 0, 0])


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biasdiff.evaluation.detection.RESAMPLES", 60)


def test_by_hand() -> None:
    found = detection_metrics(SCORES, TRUTH, fraction=0.3)
    assert found["coverage"].value == pytest.approx(200 / 3)
    assert found["precision"].value == pytest.approx(200 / 3)
    # Of 3 x 7 pairs of a biased and another example, 7 + 6 + 3 are in the right order.
    assert found["auroc"].value == pytest.approx(16 / 21)
    assert found["auprc"].value == pytest.approx((1 / 1 + 2 / 3 + 3 / 7) / 3)
    assert found["coverage"].n == 3
    assert found["precision"].n == 3


@pytest.mark.parametrize(
    ("fraction", "coverage", "precision"),
    [(0.1, 100 / 3, 100.0), (0.01, 100 / 3, 100.0), (0.5, 200 / 3, 40.0), (1.0, 100.0, 30.0)],
)
def test_fractions(fraction: float, coverage: float, precision: float) -> None:
    found = detection_metrics(SCORES, TRUTH, fraction=fraction)
    assert found["coverage"].value == pytest.approx(coverage)
    assert found["precision"].value == pytest.approx(precision)


def test_the_order_of_rows_does_not_matter() -> None:
    shuffle = np.random.default_rng(0).permutation(10)
    a = detection_metrics(SCORES, TRUTH, fraction=0.3)
    b = detection_metrics(SCORES[shuffle], TRUTH[shuffle], fraction=0.3)
    assert {k: m.value for k, m in a.items()} == pytest.approx({k: m.value for k, m in b.items()})


def test_ties_go_to_the_earlier_row() -> None:
    found = detection_metrics(np.zeros(4), np.array([1, 0, 0, 1]), fraction=0.5)
    assert found["coverage"].value == 50
    assert found["auroc"].value == 0.5


def test_perfect_and_worst_scores() -> None:
    assert detection_metrics(TRUTH * 1.0, TRUTH, fraction=0.3)["auroc"].value == 1
    assert detection_metrics(TRUTH * 1.0, TRUTH, fraction=0.3)["coverage"].value == 100
    assert detection_metrics(TRUTH * -1.0, TRUTH, fraction=0.3)["auroc"].value == 0


@pytest.mark.parametrize("name", ["coverage", "precision", "auroc", "auprc"])
def test_intervals_hold_the_values_and_repeat(name: str) -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(200) < 0.3).astype(np.int64)
    scores = truth + rng.normal(0, 1.0, 200)
    found, again = (detection_metrics(scores, truth, fraction=0.3, seed=1)[name] for _ in range(2))
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]
    assert found.interval == again.interval


@pytest.mark.parametrize("truth", [np.zeros(5, dtype=np.int64), np.ones(5, dtype=np.int64)])
def test_one_class_gives_nan_not_zero(truth: np.ndarray) -> None:
    found = detection_metrics(SCORES[:5], truth, fraction=0.4)
    assert math.isnan(found["auroc"].value)
    assert math.isnan(found["auprc"].value)
    assert math.isnan(found["coverage"].value) is bool(truth.sum() == 0)
    assert found["precision"].value == 100 * truth[0]


def test_the_curve() -> None:
    curve = detection_curve(SCORES, TRUTH)
    assert curve["fraction"] == list(CURVE_FRACTIONS)
    assert curve["coverage"] == sorted(curve["coverage"])
    assert curve["coverage"][-1] == 100
    assert curve["precision"][-1] == pytest.approx(30)
    for fraction, coverage, precision in list(zip(*curve.values(), strict=True))[::8]:
        metrics = detection_metrics(SCORES, TRUTH, fraction=fraction)
        assert metrics["coverage"].value == pytest.approx(coverage)
        assert metrics["precision"].value == pytest.approx(precision)
