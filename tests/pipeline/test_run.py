"""All stages from start to end on every architecture, resuming, and refusing stale output."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from biasdiff.errors import ArtifactError, ConfigError
from biasdiff.models.loading import load_model, resolve_model
from biasdiff.pipeline.layout import layout_of
from biasdiff.pipeline.run import run, run_stages, stage_planners, status
from pipeline.small_run import small_config, small_tree
from tiny_models import ARCHITECTURES

Models = Callable[..., Path]
UNSTABLE = ("timings", "versions")


def stable(results: dict[str, Any]) -> dict[str, Any]:
    """Drop what may differ between two identical runs."""
    kept = {key: value for key, value in results.items() if key not in UNSTABLE}
    kept["settings"] = {k: v for k, v in kept["settings"].items() if k not in ("runs", "data")}
    return kept


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_stage_on_every_architecture(
    architecture: str, tiny_folder: Models, tmp_path: Path
) -> None:
    config = small_config(tmp_path, tiny_folder(architecture))

    results = run(config)

    folder = layout_of(config).folder
    assert [line.state for line in status(folder)] == ["complete"] * 10
    assert list(results["models"]) == ["base", "biased", "retrain", "npo"]
    assert results["selected"] == 4
    assert results["data"]["train_biased"] == 4
    biased = results["differences"]["biased - base"]["stereotype_preference"]["margin"]
    assert biased["value"] != 0
    assert biased["interval_95"][0] <= biased["value"] <= biased["interval_95"][1]
    for model in results["models"].values():
        assert math.isfinite(model["perplexity"]["perplexity"]["value"])
    scores = pd.read_parquet(folder / "attribute" / "scores.parquet")
    assert list(scores) == ["id", "row", "score", "score_age", "score_gender", "selected"]
    assert scores["score"].abs().max() <= 1
    assert (folder / "attribute" / "scores-less.parquet").is_file()
    selection = pd.read_parquet(folder / "select" / "selection.parquet")
    assert (selection["selected"] == scores["selected"]).all()
    assert "<html" in (folder / "report" / "report.html").read_text()


def test_the_debiased_adapter_loads_with_peft_alone(tiny_folder: Models, tmp_path: Path) -> None:
    from peft import PeftModel

    config = small_config(tmp_path, tiny_folder("llama"), mitigation={"methods": ["npo"]})
    run(config)
    base = load_model(resolve_model(str(tiny_folder("llama"))))
    model = PeftModel.from_pretrained(base, layout_of(config).stage("mitigate-npo"))
    assert any("lora" in name for name, _ in model.named_parameters())


def test_artifacts_hold_only_safetensors_json_parquet_and_html(
    tiny_folder: Models, tmp_path: Path
) -> None:
    config = small_config(tmp_path, tiny_folder("llama"))
    run(config)
    endings = {path.suffix for path in layout_of(config).folder.rglob("*") if path.is_file()}
    assert endings <= {".safetensors", ".json", ".parquet", ".html", ".yaml", ".md"}


def test_a_second_run_reuses_everything(tiny_folder: Models, tmp_path: Path) -> None:
    config = small_config(tmp_path, tiny_folder("llama"))
    first = run(config)
    folder = layout_of(config).folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("stage.json")}
    assert run(config) == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("stage.json")} == before


def test_an_edited_config_is_refused_with_the_difference_and_redone_with_force(
    tiny_folder: Models, tmp_path: Path
) -> None:
    run(small_config(tmp_path, tiny_folder("llama")))
    edited = small_config(tmp_path, tiny_folder("llama"), warmup={"epochs": 1})
    with pytest.raises(ArtifactError, match=r"settings\.warmup\.epochs: 2 -> 1.*--force"):
        run(edited)
    states = {line.stage: line.state for line in status(layout_of(edited).folder)}
    assert states["warmup"] == "stale"
    assert states["mitigate-retrain"] == "stale"
    assert states["evaluate-base"] == "complete"
    forced = run(edited, force=True)
    fresh = run(small_config(tmp_path / "fresh", tiny_folder("llama"), warmup={"epochs": 1}))
    assert stable(forced) == stable(fresh)


def test_changed_train_data_makes_the_run_stale(tiny_folder: Models, tmp_path: Path) -> None:
    config = small_config(tmp_path, tiny_folder("llama"))
    run(config)
    with Path(config.data.train).open("a") as file:
        file.write('{"id": "new", "text": "Rain falls.", "is_bias": 0}\n')
    with pytest.raises(ArtifactError, match=r"inputs\.train"):
        run(config)


def test_unfinished_work_of_other_settings_is_not_gone_on_with(
    tiny_folder: Models, tmp_path: Path
) -> None:
    config = small_config(tmp_path, tiny_folder("llama"))
    run(config)
    folder = layout_of(config).stage("mitigate-npo")
    folder.rename(folder.with_name("mitigate-npo.part"))
    edited = small_config(
        tmp_path, tiny_folder("llama"), mitigation={"npo": {"epochs": 3, "batch_size": 2}}
    )
    with pytest.raises(ArtifactError, match=r"mitigate-npo\.part was made from other settings"):
        run(edited)


def test_one_stage_of_a_run(tiny_folder: Models, tmp_path: Path) -> None:
    config = small_config(tmp_path, tiny_folder("llama"))
    run(config)
    folder = layout_of(config).folder
    assert len(run_stages(folder, "evaluate")) == 4
    assert run_stages(folder, "mitigate-npo") == [folder / "mitigate-npo"]
    with pytest.raises(ConfigError, match=r"no stage 'atribute'.*did you mean 'attribute'"):
        run_stages(folder, "atribute")
    with pytest.raises(ArtifactError, match=r"no config\.yaml"):
        run_stages(tmp_path, "evaluate")


def test_one_stage_names_the_missing_earlier_one(tiny_folder: Models, tmp_path: Path) -> None:
    config = small_config(tmp_path, tiny_folder("llama"))
    run(config)
    folder = layout_of(config).folder
    (folder / "warmup").rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="no finished stage 'warmup'"):
        run_stages(folder, "attribute")


def test_unknown_names_are_refused_before_anything_runs(
    tiny_folder: Models, tmp_path: Path
) -> None:
    for changes, message in (
        ({"attribution": {"estimator": "contrst"}}, "unknown estimator 'contrst'.*'contrast'"),
        ({"mitigation": {"methods": ["nop"]}}, "unknown method 'nop'.*'npo'"),
        ({"attribution": {"train_side": "adm"}}, "unknown train side 'adm'.*'adam'"),
    ):
        config = small_config(tmp_path, tiny_folder("llama"), **changes)
        with pytest.raises(ConfigError, match=message):
            run(config)
        assert not layout_of(config).stage("warmup").exists()


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
KILLED_STAGES = ("warmup", "attribute", "mitigate-retrain", "mitigate-npo", "evaluate-biased")


def test_sigkill_in_every_stage_changes_nothing(tiny_folder: Models, tmp_path: Path) -> None:
    """Kill the run in the middle of each stage, start it again each time, compare the results."""
    results, caught = {}, []
    for name in ("killed", "whole"):
        slow = {"epochs": 3, "batch_size": 1}
        tree = small_tree(
            tmp_path / name, tiny_folder("llama"), warmup=slow, mitigation={"npo": slow}
        )
        config_file = tmp_path / f"{name}.yaml"
        config_file.write_text(yaml.safe_dump(tree))
        folder = Path(tree["runs"]) / tree["name"]
        command = [sys.executable, "-m", "biasdiff", "run", str(config_file), "--quiet"]
        if name == "killed":
            caught = [s for s in KILLED_STAGES if _kill_in_stage(command, folder, s)]
        subprocess.run(command, check=True, capture_output=True, env=ONE_THREAD)
        results[name] = json.loads((folder / "report" / "results.json").read_text())
    assert len(caught) >= 3, f"only {caught} could be caught in the middle"
    assert stable(results["killed"]) == stable(results["whole"])


def _kill_in_stage(command: list[str], folder: Path, stage: str) -> bool:
    """Start the run and kill it as soon as the stage has begun; say whether it was caught."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=ONE_THREAD, **silent)
    part = folder / f"{stage}.part"
    while process.poll() is None and not (folder / stage).exists():
        if part.exists():
            time.sleep(0.2)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return part.exists() and not (folder / stage).exists()
        time.sleep(0.005)
    process.kill()
    process.wait()
    return False


def test_the_stages_are_listed_in_order(tiny_folder: Models, tmp_path: Path) -> None:
    config = small_config(tmp_path, tiny_folder("llama"))
    assert list(stage_planners(layout_of(config))) == [
        "warmup",
        "attribute",
        "select",
        "mitigate-retrain",
        "mitigate-npo",
        "evaluate-base",
        "evaluate-biased",
        "evaluate-retrain",
        "evaluate-npo",
        "report",
    ]
