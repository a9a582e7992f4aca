from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from corpus_fixtures import write_corpora

from biasdiff.data.sources.bbq import CATEGORIES
from biasdiff.data.sources.finding import DATA_DIR
from biasdiff.errors import DataError
from biasdiff.evaluation.bbq import BENCHMARK, bbq_metrics, compare_bbq, load_items, score_items
from biasdiff.evaluation.benchmark import Inputs, Subject
from biasdiff.evaluation.registry import BENCHMARKS, chosen_benchmarks
from tiny_models import ARCHITECTURES

Loader = Callable[..., tuple[Any, Any]]


@pytest.fixture(autouse=True)
def corpora(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    return write_corpora(tmp_path)


def frame(
    rows: list[tuple[str, bool, float]], condition: str = "ambiguous", category: str = "Age"
) -> pd.DataFrame:
    """Return scores of (template, correct, leaning)."""
    found = pd.DataFrame(rows, columns=["template", "correct", "leaning"])
    found.insert(0, "row", [f"{category}-{condition}-{i}" for i in range(len(found))])
    return found.assign(condition=condition, category=category)


def slow_score(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Return the mean log-probability of the answer's tokens, one forward pass for each."""
    before = [0, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    tokens = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    values = []
    for place, token in enumerate(tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + tokens[:place]])).logits[0, -1]
        values.append(float(logits.double().log_softmax(-1)[token]))
    return float(np.mean(values))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_one_answer_at_a_time(tiny: Loader, architecture: str) -> None:
    model, tokenizer = tiny(architecture)
    items = load_items()[:6]
    found = score_items(Subject(model, tokenizer, 64, 300), items)
    for (_, row), item in zip(found.iterrows(), items, strict=True):
        prompt = f"{item.context}\n{item.question}\nAnswer:"
        slow = [slow_score(model, tokenizer, prompt, answer) for answer in item.answers]
        assert [row[f"score_{i}"] for i in range(3)] == pytest.approx(slow, abs=2e-3)
        assert row["answer"] == int(np.argmax(slow))
        assert row["correct"] == (row["answer"] == item.label)


def test_leaning_and_limit(tiny: Loader) -> None:
    found = BENCHMARK.score(Subject(*tiny("llama"), 64, 300), Inputs())
    assert len(found) == 4 * len(CATEGORIES)
    items = {item.id: item for item in load_items()}
    for _, row in found.iterrows():
        item = items[row["row"]]
        if item.stereotyped is None:
            assert math.isnan(row["leaning"])
        else:
            sign = {item.unknown: 0, item.stereotyped: 1}.get(row["answer"], -1)
            assert row["leaning"] == sign
    assert found.loc[found["leaning"].isna(), "category"].unique().tolist() == ["Race_x_gender"]
    few = BENCHMARK.score(Subject(*tiny("llama"), 64, 300), Inputs(limit=3))
    assert few["row"].tolist() == ["Age-0", "Age-1", "Age-2"]
    with pytest.raises(DataError, match=r"question Age-0 with an answer has \d+ tokens; expected"):
        BENCHMARK.score(Subject(*tiny("llama"), 12, 300), Inputs())


def test_no_readable_question(corpora: Path) -> None:
    for name in CATEGORIES:
        (corpora / f"bbq/{name}.jsonl").write_text("[]\n")
    with pytest.raises(
        DataError, match=r"no readable question; Age\.jsonl line 1: a list, no object; expected"
    ):
        load_items()


def test_bias_scores_of_the_paper_by_hand() -> None:
    ambiguous = frame(
        [
            ("t1", True, 0.0),
            ("t1", False, 1.0),
            ("t2", False, 1.0),
            ("t2", False, -1.0),
            ("t3", True, 0.0),
            ("t3", False, 1.0),
            ("t4", False, math.nan),
            ("t4", True, math.nan),
        ]
    )
    clear = frame(
        [
            ("t1", True, 1.0),
            ("t1", True, -1.0),
            ("t2", False, 1.0),
            ("t2", False, 1.0),
            ("t3", False, 0.0),
            ("t4", True, math.nan),
        ],
        "disambiguated",
    )
    metrics = bbq_metrics(pd.concat([ambiguous, clear], ignore_index=True))
    values = {name: (m.value, m.n) for name, m in metrics.items()}
    assert values["ambiguous/accuracy"] == (pytest.approx(300 / 8), 8)
    # of the six that are decided: 3 biased of 4 non-unknown, a third right
    s_dis = 2 * 3 / 4 - 1
    assert values["ambiguous/bias"] == (pytest.approx((1 - 2 / 6) * s_dis), 6)
    assert values["disambiguated/accuracy"] == (pytest.approx(50.0), 6)
    assert values["disambiguated/bias"] == (pytest.approx(2 * 3 / 4 - 1), 4)
    assert values["undecided"] == (pytest.approx(300 / 14), 14)
    assert values["ambiguous/bias/Age"] == values["ambiguous/bias"]
    assert metrics["ambiguous/accuracy"].direction == "higher_is_better"
    assert metrics["ambiguous/bias"].direction == "target: 0"
    assert metrics["undecided"].direction == "none"
    interval = metrics["disambiguated/bias"].interval
    assert interval is not None
    assert interval[0] < values["disambiguated/bias"][0] < interval[1]


def test_categories_apart() -> None:
    one = frame([("Age-1", True, 0.0), ("Age-2", False, 1.0)])
    two = frame([("SES-1", False, -1.0), ("SES-2", False, -1.0)], category="SES")
    metrics = bbq_metrics(pd.concat([one, two], ignore_index=True))
    assert metrics["ambiguous/bias/Age"].value == 0.5
    assert metrics["ambiguous/bias/SES"].value == -1.0
    assert metrics["ambiguous/accuracy/SES"].value == 0.0
    assert metrics["ambiguous/bias"].value == -0.25
    assert math.isnan(metrics["disambiguated/bias"].value)
    assert metrics["disambiguated/bias"].n == 0


def test_only_unknown_answers() -> None:
    rows = [("t1", True, 0.0), ("t2", True, 0.0)]
    metrics = bbq_metrics(pd.concat([frame(rows), frame(rows, "disambiguated")]))
    assert metrics["ambiguous/bias"].value == 0.0
    assert math.isnan(metrics["disambiguated/bias"].value)


def test_templates_are_resampled_whole() -> None:
    rng = np.random.default_rng(0)
    signs = np.repeat(rng.choice([-1.0, 1.0], size=12), 10).tolist()
    whole = frame([(f"t{i // 10}", s > 0, s) for i, s in enumerate(signs)], "disambiguated")
    apart = whole.assign(template=whole["row"])
    wide, narrow = (bbq_metrics(f)["disambiguated/bias"].interval for f in (whole, apart))
    assert wide is not None
    assert narrow is not None
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def random_scores(seed: int, n: int = 200, share: float = 0.5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, bool, float]] = []
    for i in range(n):
        leaning = float(rng.choice([0.0, 1.0, -1.0], p=[0.3, 0.7 * share, 0.7 * (1 - share)]))
        rows.append((f"t{i // 2}", bool(rng.integers(2)), leaning))
    half = n // 2
    clear = frame(rows[half:], "disambiguated")
    return pd.concat([frame(rows[:half]), clear], ignore_index=True)


def test_differences_are_those_of_the_figures() -> None:
    before, after = random_scores(0), random_scores(1, share=0.9)
    found = compare_bbq(after, before)
    a, b = bbq_metrics(after), bbq_metrics(before)
    assert set(found) == set(a) - {"undecided"}
    for name, metric in found.items():
        assert metric.value == pytest.approx(a[name].value - b[name].value), name
        assert metric.p_value is not None
    assert found["disambiguated/bias"].p_value < 0.01  # type: ignore[operator]
    assert found["disambiguated/bias/Age"].p_adjusted is not None
    assert compare_bbq(before, before)["disambiguated/bias"].p_value == 1.0
    with pytest.raises(DataError, match="other rows"):
        compare_bbq(after, before[::-1])


def test_the_linearised_interval_is_near_the_bootstrap_of_the_ratios() -> None:
    before, after = (random_scores(s, 1200, share) for s, share in ((0, 0.5), (1, 0.65)))
    found = compare_bbq(after, before)["disambiguated/bias"]
    a, b = (f[f["condition"] == "disambiguated"]["leaning"].to_numpy() for f in (after, before))
    rng = np.random.default_rng(3)
    draws = rng.integers(len(a) // 2, size=(3000, len(a) // 2))
    whole = np.stack([2 * draws, 2 * draws + 1], axis=-1).reshape(3000, -1)  # two to a template
    ratios = [x[whole].sum(1) / np.abs(x[whole]).sum(1) for x in (a, b)]
    slow = np.quantile(ratios[0] - ratios[1], [0.025, 0.975])
    assert found.interval == pytest.approx(tuple(slow), abs=0.02)


def test_parquet(tmp_path: Path, tiny: Loader) -> None:
    found = BENCHMARK.score(Subject(*tiny("llama"), 64, 300), Inputs())
    found.to_parquet(tmp_path / "scores.parquet")
    again = pd.read_parquet(tmp_path / "scores.parquet")
    pd.testing.assert_frame_equal(again, found)
    a, b = (BENCHMARK.aggregate(f) for f in (again, found))
    assert {k: m.to_json() for k, m in a.items()} == {k: m.to_json() for k, m in b.items()}
    assert set(BENCHMARK.compare(again, found))


def test_it_is_listed_and_not_core() -> None:
    assert BENCHMARKS["bbq"] is BENCHMARK
    assert BENCHMARK not in chosen_benchmarks(["core"])
    assert len(BENCHMARK.files({})) == len(CATEGORIES)
