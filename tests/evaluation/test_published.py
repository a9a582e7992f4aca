"""benchmarks/published.py, on a tiny model that stands under a published name."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from corpus_fixtures import write_corpora

import biasdiff
from biasdiff.data.probe import ProbePair, save_probe_pairs
from biasdiff.data.sources.crows_pairs import FILE
from biasdiff.data.sources.finding import DATA_DIR
from biasdiff.evaluation.crows_pairs import EXPECTED

Models = Callable[..., Path]
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/published.py"


@pytest.fixture(scope="module")
def published() -> ModuleType:
    spec = importlib.util.spec_from_file_location("published", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["published"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpora(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    monkeypatch.setenv(DATA_DIR, str(folder))
    write_corpora(folder)
    kinds = [kind for kind, count in EXPECTED.items() for _ in range(count)]
    types = ("gender", "race-color", "religion")
    pairs = [
        ProbePair(f"She is {i}.", f"He is {i}.", kind, types[i % 3], i)  # type: ignore[arg-type]
        for i, kind in enumerate(kinds)
    ]
    save_probe_pairs(pairs, folder / FILE.path)
    return folder


def test_a_model_under_a_published_name(
    published: ModuleType,
    tiny_folder: Models,
    corpora: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--folder", f"gpt2={tiny_folder('gpt2')}", "--only", "gpt2"]
    assert published.main(arguments) == 1
    shown = capsys.readouterr().out
    blocks = shown.split("\n\n")
    assert len(blocks) == 6
    for block, figure in zip(
        blocks,
        ("metric/gender", "metric/race-color", "metric/religion", "lms", "ss", "icat"),
        strict=True,
    ):
        assert figure in block
        assert "scoring mean_bias_bench; " in block
        assert block.count("closest") - block.count("comes closest") == 1
        assert block.count("its scoring") == 1
    variants = ("sum", "mean", "unmodified", "modified", "mean_bias_bench")
    found = re.findall(r"^  (\w+) +\d+\.\d\d +[+-]\d+\.\d\d", blocks[0], re.MULTILINE)
    assert tuple(found) == variants
    found = re.findall(r"^  (\w+) +\d+\.\d\d +[+-]\d+\.\d\d", blocks[3], re.MULTILINE)
    assert tuple(found) == ("sum", "mean", "mean_bias_bench")
    assert "over 3 values of gpt2, crows_pairs: " in blocks[2]
    assert re.search(r"[1-6] of 6 values are not met in the scoring they were published", shown)


def test_values_of_unknown_scoring_only_name_the_closest(
    published: ModuleType,
    tiny_folder: Models,
    corpora: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "facebook/opt-350m"
    code = published.main(
        ["--folder", f"{name}={tiny_folder('opt-350m')}", "--only", name, "--limit", "1300"]
    )
    shown = capsys.readouterr().out
    assert code == 0
    assert "only the first 1300 examples" in shown
    assert f"{name}, crows_pairs anti_stereotype: published 54.59 ± 1, scoring not stated" in shown
    assert f"over 3 values of {name}, crows_pairs: " in shown


def test_ours_are_those_of_the_benchmarks(
    published: ModuleType, tiny_folder: Models, corpora: Path
) -> None:
    from biasdiff.evaluation.benchmark import Inputs
    from biasdiff.evaluation.registry import BENCHMARKS
    from biasdiff.models.loading import resolve_model

    subject = published._load(resolve_model(str(tiny_folder("llama"))), 256)
    figures = published.crows_pairs_figures(subject, ("stereotype", "metric/gender"), 40)
    benchmark = BENCHMARKS["crows_pairs"]
    metrics = benchmark.aggregate(benchmark.score(subject, Inputs(limit=40)))
    assert figures["stereotype"]["sum"] == metrics["stereotype"].value
    assert figures["stereotype"]["modified"] == metrics["modified/stereotype"].value
    assert figures["metric/gender"]["sum"] == metrics["metric/gender"].value
    figures = published.stereoset_figures(subject, ("lms", "ss", "icat"), None)
    benchmark = BENCHMARKS["stereoset"]
    metrics = benchmark.aggregate(benchmark.score(subject, Inputs()))
    for name in ("lms", "ss", "icat"):
        assert figures[name]["mean"] == pytest.approx(metrics[f"intrasentence/{name}"].value)


def test_every_value_has_a_model_and_a_scoring_that_there_is(published: ModuleType) -> None:
    from biasdiff.evaluation.stereotype_preference import VARIANTS

    assert {entry.model for entry in published.TABLE} == set(published.PARAMETERS)
    assert {entry.variant for entry in published.TABLE} <= {*VARIANTS, None}
    assert len(published.TABLE) == 3 + 3 + 8 + 12
    assert all(0 < entry.value < 100 and entry.tolerance > 0 for entry in published.TABLE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "gpt3"], r"no published value of gpt3 \(did you mean 'gpt2'\?\)"),
        (["--folder", "gpt2"], "expected NAME=FOLDER with a folder that is there"),
        (["--folder", "gpt2=/none/there"], "expected NAME=FOLDER with a folder that is there"),
    ],
)
def test_wrong_arguments(
    published: ModuleType,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        published.main(arguments)
    assert re.search(message, capsys.readouterr().err)


def test_without_models(tmp_path: Path) -> None:
    source = str(Path(biasdiff.__file__).parents[1])
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": source,
    }
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "gpt2: not to be had ('gpt2' is no local folder and the hub cannot" in done.stdout
    assert "EleutherAI/pythia-12b: left out, more than 2 billion parameters" in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith("no model can be had: name a folder")
