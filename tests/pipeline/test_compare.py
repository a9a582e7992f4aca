"""``biasdiff evaluate`` by benchmark and ``biasdiff compare``, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from corpus_fixtures import write_corpora
from typer.testing import CliRunner

from biasdiff.cli.app import app
from biasdiff.config import EvaluateConfig
from biasdiff.data.files import write_rows
from biasdiff.data.probe import ProbePair, save_probe_pairs
from biasdiff.data.sources.finding import DATA_DIR
from biasdiff.errors import ConfigError, DataError
from biasdiff.evaluation.benchmark import difference_metric, mean_comparison
from biasdiff.evaluation.registry import BENCHMARKS, chosen_benchmarks
from biasdiff.pipeline.compare import compare
from biasdiff.pipeline.evaluate import available_benchmarks, scores_path
from biasdiff.reporting.comparison import judge, sentences

Folder = Callable[..., Path]


@pytest.fixture
def evaluated(tiny_folder: Folder, tmp_path: Path) -> tuple[Path, Path]:
    """Evaluate two tiny models on short pairs and texts."""
    pairs = [
        ProbePair(f"Women {claim}.", f"Men {claim}.", "stereo", kind, 0)
        for kind in ("gender", "age")
        for claim in (f"lose {n} keys a {kind}" for n in range(20))
    ]
    save_probe_pairs(pairs, tmp_path / "pairs.csv")
    texts = [{"text": f"The river has {n} bridges."} for n in range(50)]
    write_rows(texts, tmp_path / "texts.jsonl")
    options = ["--limit", "40", "--pairs", str(tmp_path / "pairs.csv")]
    options += ["--texts", str(tmp_path / "texts.jsonl")]
    files = []
    for architecture in ("llama", "gpt2"):
        out = tmp_path / f"{architecture}.json"
        done = CliRunner().invoke(
            app,
            ["evaluate", str(tiny_folder(architecture)), "--out", str(out), *options],
        )
        assert done.exit_code == 0, done.output
        files.append(out)
    return files[0], files[1]


def test_every_figure_can_be_recomputed_from_the_kept_scores(evaluated: tuple[Path, Path]) -> None:
    record = json.loads(evaluated[0].read_text())
    assert list(record["metrics"]) == ["stereotype_preference", "perplexity"]
    for name, metrics in record["metrics"].items():
        frame = pd.read_parquet(scores_path(evaluated[0], name))
        assert len(frame) == 40
        again = BENCHMARKS[name].aggregate(frame)
        assert {key: metric.to_json() for key, metric in again.items()} == metrics
    assert set(record["seconds"]) == set(record["metrics"])
    assert record["settings"]["scoring"].startswith("sum: ")


def test_compare_pairs_examples_and_says_what_is_noise(
    evaluated: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "difference.json"
    done = CliRunner().invoke(app, ["compare", *map(str, evaluated), "--out", str(out)])
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    after, before = (
        pd.read_parquet(scores_path(path, "stereotype_preference")) for path in evaluated
    )
    margin = record["differences"]["stereotype_preference"]["margin"]
    assert margin["value"] == pytest.approx(float((after["margin"] - before["margin"]).mean()))
    assert margin["interval_95"][0] <= margin["value"] <= margin["interval_95"][1]
    ratio = record["differences"]["perplexity"]["perplexity_ratio"]["value"]
    values = [record["values"][i]["perplexity"]["perplexity"]["value"] for i in (0, 1)]
    assert ratio == pytest.approx(values[0] / values[1])
    assert "distinguishable from noise" in done.output
    assert all(line in " ".join(done.output.split()) for line in sentences(record)[-1:])


def test_a_model_does_not_differ_from_itself(evaluated: tuple[Path, Path]) -> None:
    record = compare(evaluated[0], evaluated[0])
    for differences in record["differences"].values():
        for key, metric in differences.items():
            assert metric["value"] == (1 if key == "perplexity_ratio" else 0)
            assert metric["p_value"] == 1
            assert judge(key, metric) == "not distinguishable from noise"


def test_files_that_cannot_be_compared(evaluated: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json does not exist; expected a JSON file"):
        compare(tmp_path / "none.json", evaluated[0])
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(DataError, match=r"other\.json holds no 'metrics'"):
        compare(evaluated[0], other)
    other.write_text('{"metrics": {"seat": {}}}')
    with pytest.raises(DataError, match="have no benchmark in common"):
        compare(evaluated[0], other)
    scores_path(evaluated[1], "perplexity").unlink()
    with pytest.raises(DataError, match=r"gpt2\.perplexity\.parquet does not exist; expected the"):
        compare(*evaluated)


def test_unknown_benchmarks_get_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"called 'crows_pair' \(did you mean 'crows_pairs'\?\)"):
        chosen_benchmarks(["crows_pair"])
    assert {b.name for b in chosen_benchmarks(["core"])} >= {"crows_pairs", "wikitext2"}
    assert all(not b.extra for b in chosen_benchmarks(["all"]))


def test_of_all_what_is_not_at_hand_is_left_out_but_a_named_one_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_DIR, str(write_corpora(tmp_path / "data")))
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data/stereoset/dev.json").unlink()

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("pooch.retrieve", unreachable)
    names = [b.name for b, _ in available_benchmarks(EvaluateConfig(benchmarks=("core",)))]
    assert "stereoset" not in names
    assert "crows_pairs" in names
    with pytest.raises(DataError, match=r"stereoset/dev\.json is not there"):
        available_benchmarks(EvaluateConfig(benchmarks=("stereoset",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crows_pair": {}}, r"called 'crows_pair' \(did you mean 'crows_pairs'\?\)"),
        ({"winobias": {"layer": 1}}, r"winobias has no option 'layer'; expected none"),
        ({"crows_pairs": {"bias_bench": 1}}, "bias_bench is 1; expected true or false"),
        ({"seat": {"layer": "a"}}, "seat: layer is 'a'"),
        ({"stereoset": {"parts": ["both"]}}, "stereoset: parts is"),
        ({"wikitext2": {"tokens": 0}}, "wikitext2: tokens is 0"),
        ({"cloze": {"source": "wikidata"}}, "cloze: source is 'wikidata'"),
    ],
)
def test_options_are_checked_before_anything_is_scored(
    options: dict[str, dict[str, Any]],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(DATA_DIR, str(write_corpora(tmp_path / "data")))
    settings = EvaluateConfig(benchmarks=("all",), options=options)
    with pytest.raises(ConfigError, match=message):
        available_benchmarks(settings)


def test_holm_holds_within_each_figure() -> None:
    groups = ["a"] * 30 + ["b"] * 30 + ["c"] * 30
    before = pd.DataFrame({"row": range(90), "bias_type": groups, "x": [0.0] * 90})
    shifts = [0.5 + 0.1 * (i % 7) for i in range(30)] + [((-1.0) ** i) for i in range(60)]
    after = before.assign(x=shifts)
    found = mean_comparison({"x": lambda frame: frame["x"]})(after, before)
    raw = found["x/a"].p_value
    assert raw is not None
    assert found["x/a"].p_adjusted == pytest.approx(3 * raw)
    assert found["x/b"].p_adjusted == 1.0
    assert judge("margin", found["x/a"].to_json()) == "increased"


def test_an_interval_beside_zero_is_noise_where_the_adjusted_p_is_not_small() -> None:
    metric = {"value": 1.0, "interval_95": [0.1, 1.9], "p_value": 0.03, "p_adjusted": 0.2}
    assert judge("margin", metric) == "not distinguishable from noise"
    assert judge("margin", metric | {"p_adjusted": 0.04}) == "increased"


def test_yes_and_no_are_compared_in_points_by_mcnemar() -> None:
    before = pd.Series([True] * 8 + [False] * 8).to_numpy()
    after = pd.Series([True] * 14 + [False] * 2).to_numpy()
    found = difference_metric(after, before)
    assert found.value == pytest.approx(37.5)
    assert found.p_value == pytest.approx(2 / 2**6)
