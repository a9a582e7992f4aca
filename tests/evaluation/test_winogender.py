from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from biasdiff.data.sources import winogender as source
from biasdiff.data.sources.finding import DATA_DIR, find_files
from biasdiff.errors import DataError
from biasdiff.evaluation import winogender
from biasdiff.evaluation.benchmark import Inputs, Subject
from biasdiff.evaluation.registry import BENCHMARKS, chosen_benchmarks
from biasdiff.evaluation.winogender import (
    BENCHMARK,
    compare_winogender,
    load_schemas,
    winogender_metrics,
)

Loader = Callable[..., tuple[Any, Any]]
PRONOUNS = {"male": "he", "female": "she", "neutral": "they"}


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Write two occupations, each with a schema of its own and one of the participant."""
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))
    lines = ["sentid\tsentence"]
    for occupation in ("cook", "nurse"):
        for answer in (1, 0):
            for gender, pronoun in PRONOUNS.items():
                text = f"The {occupation} told the guest that {pronoun} would be late {answer}."
                lines.append(f"{occupation}.guest.{answer}.{gender}.txt\t{text}")
    folder = tmp_path / "winogender"
    folder.mkdir()
    (folder / "all_sentences.tsv").write_text("\n".join(lines))
    (folder / "occupations-stats.tsv").write_text(
        "occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\n"
        "cook\t1\t40\t2015\nnurse\t1\t90\t2015\n"
    )
    return folder


def frame(rows: list[tuple[str, str, float, float, float, float]]) -> pd.DataFrame:
    """Return scores of (occupation, refers_to, percent_women, male, female, neutral)."""
    names = ["occupation", "refers_to", "percent_women", "sum_male", "sum_female", "sum_neutral"]
    found = pd.DataFrame(rows, columns=names)
    found.insert(0, "row", [f"r{i}" for i in range(len(found))])
    found["women"] = found["sum_female"] - found["sum_male"]
    return found


ROWS = [
    ("cook", "occupation", 40.0, -10.0, -11.0, -12.0),  # he: pro, margin 1
    ("cook", "occupation", 40.0, -10.0, -9.5, -9.0),  # she: anti, margin -0.5
    ("nurse", "occupation", 90.0, -10.0, -8.0, -9.0),  # she: pro, margin 2
    ("judge", "occupation", 50.0, -10.0, -1.0, -9.0),  # no majority
    ("cook", "participant", 40.0, -10.0, -10.0, -10.0),  # a tie
    ("nurse", "participant", 90.0, -10.0, -7.0, -10.0),
]


def test_schemas(data: Path) -> None:
    schemas = load_schemas()
    assert [(s.name, s.refers_to, s.percent_women) for s in schemas] == [
        ("cook.guest.1", "participant", 40.0),
        ("cook.guest.0", "occupation", 40.0),
        ("nurse.guest.1", "participant", 90.0),
        ("nurse.guest.0", "occupation", 90.0),
    ]
    assert schemas[1].texts["female"] == "The cook told the guest that she would be late 0."


def test_what_is_missing_is_said(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences, table = data / "all_sentences.tsv", data / "occupations-stats.tsv"
    whole = sentences.read_text()
    sentences.write_text("\n".join(line for line in whole.splitlines() if ".0.neutral" not in line))
    with pytest.raises(DataError, match=r"cook\.guest\.0 has no neutral sentence; expected male, "):
        load_schemas()
    sentences.write_text(whole)
    table.write_text("occupation\tbls_pct_female\ncook\t40\n")
    with pytest.raises(DataError, match=r"occupations-stats\.tsv does not hold 'nurse'; expected"):
        load_schemas()
    table.unlink()
    monkeypatch.setattr(winogender, "fetch", lambda corpus: {source.SENTENCES.path: sentences})
    with pytest.raises(DataError, match=r"stats\.tsv is not there and cannot be fetched; expected"):
        BENCHMARK.files({})


@pytest.mark.skipif(
    not os.environ.get(DATA_DIR) or find_files(source.CORPUS) is None, reason="no original at hand"
)
def test_the_original() -> None:
    schemas = load_schemas()
    assert Counter(s.refers_to for s in schemas) == {"occupation": 120, "participant": 120}
    assert len({s.occupation for s in schemas}) == 60
    assert not [s for s in schemas if s.percent_women == 50]
    assert sum(s.percent_women > 50 for s in schemas) == 4 * 31


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_scores_one_sentence_at_a_time(tiny: Loader, data: Path, architecture: str) -> None:
    model, tokenizer = tiny(architecture)
    found = BENCHMARK.score(Subject(model, tokenizer, 64, 200), Inputs(limit=3))
    assert found["row"].tolist() == ["cook.guest.1", "cook.guest.0", "nurse.guest.1"]
    for (_, row), schema in zip(found.iterrows(), load_schemas(), strict=False):
        for gender, text in schema.texts.items():
            ids = torch.tensor([[0, *tokenizer(text)["input_ids"]]])
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            slow = float(logs.gather(1, ids[0, 1:, None]).sum())
            assert row[f"sum_{gender}"] == pytest.approx(slow, abs=1e-3)
        assert row["women"] == pytest.approx(row["sum_female"] - row["sum_male"])
    with pytest.raises(DataError, match=r"a sentence has \d+ tokens; expected at most 5"):
        BENCHMARK.score(Subject(model, tokenizer, 5, 200), Inputs())


def test_metrics_by_hand() -> None:
    metrics = winogender_metrics(frame(ROWS))
    values = {name: (m.value, m.n) for name, m in metrics.items()}
    assert values["metric"] == (pytest.approx(200 / 3), 3)
    assert values["ties"] == (0.0, 3)
    assert values["margin"] == (pytest.approx(2.5 / 3), 3)
    women = [-0.25, 2.0, 9.0]  # cook, nurse, judge
    expected = stats.pearsonr([40, 90, 50], women).statistic
    assert values["correlation"] == (pytest.approx(expected), 3)
    assert values["neutral/metric"] == (25.0, 4)
    assert values["neutral/margin"] == (pytest.approx((-2 + 0.5 - 1 - 8) / 4), 4)
    assert values["participant/metric"] == (50.0, 2)
    assert values["participant/ties"] == (50.0, 2)
    assert values["participant/margin"] == (1.5, 2)
    assert math.isnan(values["participant/correlation"][0])
    assert metrics["metric"].direction == "target: 50"
    assert metrics["neutral/metric"].direction == "none"


def many(seed: int, slope: float = 0.05) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(40):
        share = float(rng.uniform(0, 100))
        for refers_to in ("occupation", "occupation", "participant"):
            women = slope * (share - 50) * (refers_to == "occupation") + rng.normal()
            rows.append((f"job {number}", refers_to, share, -20.0, -20.0 + women, -19.0))
    return frame(rows)


def test_the_interval_of_a_correlation_is_that_of_scipys_bootstrap() -> None:
    scores = many(0)
    means = (
        scores[scores["refers_to"] == "occupation"].groupby("occupation").mean(numeric_only=True)
    )
    x, y = means["percent_women"].to_numpy(), means["women"].to_numpy()
    slow = stats.bootstrap(
        (x, y),
        lambda a, b: stats.pearsonr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(1),
    )
    found = winogender_metrics(scores)["correlation"]
    assert found.value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found.interval == pytest.approx(tuple(slow.confidence_interval), abs=0.03)
    assert found.standard_error == pytest.approx(slow.standard_error, rel=0.1)
    assert winogender_metrics(scores)["participant/correlation"].interval[0] < 0  # type: ignore[index]


def test_a_correlation_with_what_does_not_vary_is_nan() -> None:
    scores = many(0).assign(women=0.0)
    metric = winogender_metrics(scores)["correlation"]
    assert math.isnan(metric.value)
    assert metric.to_json()["value"] is None
    assert math.isnan(compare_winogender(scores, scores)["correlation"].value)


def test_comparison() -> None:
    before, other = many(0), many(0, slope=0.0)
    found = compare_winogender(other, before)
    a, b = winogender_metrics(other), winogender_metrics(before)
    for name in ("metric", "margin", "correlation", "neutral/margin", "participant/margin"):
        assert found[name].value == pytest.approx(a[name].value - b[name].value), name
    assert found["correlation"].p_value is not None
    assert found["correlation"].p_value < 0.001
    assert found["correlation"].interval is not None
    assert found["correlation"].interval[1] < 0
    assert found["participant/correlation"].value == pytest.approx(0.0, abs=1e-12)
    assert compare_winogender(before, before)["correlation"].p_value == 1.0
    with pytest.raises(DataError, match="hold 120 and 119 examples"):
        compare_winogender(before, before[:119])


def test_the_p_of_a_difference_of_correlations_holds_its_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where two models differ by noise alone, about one p in twenty is below 0.05."""
    monkeypatch.setattr(winogender, "RESAMPLES", 20)
    below = []
    for seed in range(200):
        rng, base = np.random.default_rng(seed), many(seed)
        a, b = (base.assign(women=base["women"] + rng.normal(size=len(base))) for _ in range(2))
        p = compare_winogender(a, b)["correlation"].p_value
        below.append(p is not None and p < 0.05)
    assert 0.01 < np.mean(below) < 0.11


def test_parquet(tmp_path: Path, tiny: Loader, data: Path) -> None:
    found = BENCHMARK.score(Subject(*tiny("llama"), 64, 200), Inputs())
    found.to_parquet(tmp_path / "scores.parquet")
    again = pd.read_parquet(tmp_path / "scores.parquet")
    pd.testing.assert_frame_equal(again, found)
    a, b = (BENCHMARK.aggregate(f) for f in (again, found))
    assert {k: m.to_json() for k, m in a.items()} == {k: m.to_json() for k, m in b.items()}


def test_it_is_listed_and_not_core() -> None:
    assert BENCHMARKS["winogender"] is BENCHMARK
    assert BENCHMARK not in chosen_benchmarks(["core"])
