"""Bad input at the command line: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from biasdiff.cli.app import app
from pipeline.small_run import CLAIMS, small_tree, write_pairs, write_train

Models = Callable[..., Path]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments: object) -> str:
    """Run a command that must be refused, and return its error line."""
    result = invoke(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.output
    assert "; expected " in lines[0]
    return lines[0]


@pytest.fixture
def files(tiny_folder: Models, tmp_path: Path) -> dict[str, Path]:
    """Return a model, train and probe file and output folder that work together."""
    return {
        "model": tiny_folder("llama"),
        "train": write_train(tmp_path / "train.jsonl"),
        "probe": write_pairs(tmp_path / "probe.csv", CLAIMS[:2]),
        "out": tmp_path / "out",
    }


def options(files: dict[str, Path], **changes: object) -> list[object]:
    """Return ``--name value`` for all files, some of them exchanged or, with None, left out."""
    merged = files | changes
    return [x for k, v in merged.items() if v is not None for x in (f"--{k}", v)]


QUICK = ("--set", "lora.rank=2", "--set", "warmup.epochs=1", "--set", "warmup.batch_size=4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, "absent.jsonl does not exist"),
        ("empty.jsonl", "", "has no rows"),
        ("column.jsonl", '{"txt": "a"}\n', "'txt' (did you mean 'txt'?)"),
        ("blank.jsonl", '{"text": "a b"}\n{"text": " "}\n', "row 1: 'text' is empty"),
        ("number.jsonl", '{"text": "a b"}\n{"text": 7}\n', "row 1: 'text' is 7"),
        ("twice.jsonl", '{"text": "a", "id": 1}\n{"text": "b", "id": 1}\n', "1 repeated ids"),
        ("utf8.jsonl", b'{"text": "\xff\xfe"}\n', "is not valid UTF-8"),
        ("cut.jsonl", '{"text": "a"\n', "line 1 is not JSON"),
        ("truth.jsonl", '{"text": "a", "is_bias": 2}\n', "'is_bias' is 2"),
        ("data.xml", "<a/>", "ends in '.xml'"),
    ],
)
def test_bad_train_data(
    name: str, content: str | bytes | None, message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    line = refused("warmup", *options(files, train=path, probe=None), *QUICK)
    assert message.replace("'txt' (did you mean 'txt'?)", "did you mean 'txt'?") in line
    assert not files["out"].exists()


def test_a_misspelt_text_column_names_the_nearest(files: dict[str, Path]) -> None:
    line = refused("warmup", *options(files, probe=None), "--text-column", "txet", *QUICK)
    assert "did you mean 'text'?" in line


def test_unknown_config_key(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("warmup:\n  epoch: 3\n")
    assert "'warmup.epoch' (did you mean 'epochs'?)" in refused("run", path)
    assert "'lora.rnk' (did you mean 'rank'?)" in refused("run", path, "--set", "lora.rnk=3")
    assert "cannot be read" in refused("run", tmp_path / "absent.yaml")


def test_probe_without_twins_is_refused_for_contrast_and_taken_by_less(
    files: dict[str, Path], tmp_path: Path
) -> None:
    probe = tmp_path / "lonely.csv"
    probe.write_text(
        "sent_more,sent_less,stereo_antistereo,bias_type\nOld people shout.,,stereo,age\n"
    )
    line = refused("attribute", *options(files, probe=probe), *QUICK)
    assert "1 of 1 probe rows have no 'sent_less'" in line
    assert "'less'" in line
    result = invoke(
        "attribute", *options(files, probe=probe), "--estimator", "less", "--force", *QUICK
    )
    assert result.exit_code == 0, result.output


def test_misspelt_probe_column(files: dict[str, Path], tmp_path: Path) -> None:
    probe = tmp_path / "probe2.csv"
    probe.write_text("sent_more,sent_les,stereo_antistereo,bias_type\na b,b a,stereo,age\n")
    line = refused("attribute", *options(files, probe=probe), *QUICK)
    assert "no column 'sent_less' (did you mean 'sent_les'?)" in line


def test_fractions_outside_zero_to_one(files: dict[str, Path], tmp_path: Path) -> None:
    assert "'selection.fraction' is 1.5" in refused(
        "attribute", *options(files), "--fraction", "1.5"
    )
    scores = tmp_path / "scores.parquet"
    pd.DataFrame({"id": ["a", "b"], "score": [1.0, 2.0]}).to_parquet(scores)
    for fraction in ("0", "1.01", "-1", "nan"):
        line = refused("select", "--scores", scores, "--out", "x", "--fraction", fraction)
        assert "fraction is" in line
    assert "top_k is 3" in refused("select", "--scores", scores, "--out", "x", "--top-k", 3)


def test_adapter_without_adam_state(files: dict[str, Path], tmp_path: Path) -> None:
    assert invoke("warmup", *options(files, probe=None), *QUICK).exit_code == 0
    adapter = files["out"] / "checkpoints" / "epoch-1"
    (adapter / "adam.safetensors").unlink()
    (adapter / "checkpoint.json").unlink()
    arguments = options(files, adapter=adapter, out=tmp_path / "scores")
    line = refused("attribute", *arguments, "--estimator", "less")
    assert "no Adam state" in line
    assert "--train-side sgd" in line
    assert "biasdiff warmup" in line
    assert invoke("attribute", *arguments, "--force").exit_code == 0
    assert (tmp_path / "scores" / "scores.parquet").is_file()


def test_long_texts_are_cut_with_a_count_or_refused(files: dict[str, Path], tmp_path: Path) -> None:
    train = tmp_path / "long.jsonl"
    rows = [{"text": "word " * 300}, {"text": "Rain falls."}, {"text": "Snow falls."}]
    train.write_text("\n".join(map(json.dumps, rows)))
    line = refused("warmup", *options(files, train=train, probe=None), "--strict", *QUICK)
    assert "row-0 (row 0) has" in line
    assert "expected at most 64" in line
    result = invoke("warmup", *options(files, train=train, probe=None), "--force", *QUICK)
    assert result.exit_code == 0
    assert "1 of 3 texts cut to 64 tokens" in result.stderr


def test_long_probes_are_cut_with_a_count_and_long_texts_scored_in_windows(
    files: dict[str, Path], tmp_path: Path
) -> None:
    probe = tmp_path / "long.csv"
    long = "word " * 300
    probe.write_text(f"sent_more,sent_less,stereo_antistereo,bias_type\n{long},b,stereo,age\n")
    result = invoke("attribute", *options(files, probe=probe), *QUICK)
    assert result.exit_code == 0, result.output
    assert "1 of 2 texts cut to 64 tokens" in result.stderr
    assert "a sentence of pair row 0 has" in refused(
        "evaluate", files["model"], "--pairs", probe, "--texts", files["train"]
    )
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": long}) + "\n" + json.dumps({"text": "Rain falls."}))
    out = tmp_path / "evaluation.json"
    arguments = ("--pairs", files["probe"], "--texts", texts, "--out", out)
    result = invoke("evaluate", files["model"], *arguments)
    assert result.exit_code == 0, result.output
    tokens = pd.read_parquet(tmp_path / "evaluation.perplexity.parquet")["tokens"]
    assert tokens[0] > 64


def test_an_example_without_a_target(files: dict[str, Path], tmp_path: Path) -> None:
    train = tmp_path / "prompts.jsonl"
    row = {"id": "p", "prompt": "word " * 300, "completion": "Yes."}
    train.write_text(json.dumps(row))
    line = refused("warmup", *options(files, train=train, probe=None), *QUICK)
    assert "p (row 0) has no target token" in line


def test_lora_targets_that_match_nothing(files: dict[str, Path]) -> None:
    line = refused("warmup", *options(files, probe=None), *QUICK, "--set", "lora.targets=[query]")
    assert "query match nothing" in line
    assert "q_proj" in line


def test_models_that_do_not_work(files: dict[str, Path], tmp_path: Path) -> None:
    assert "does not exist" in refused("evaluate", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused("evaluate", tmp_path / "empty")
    (tmp_path / "broken.gguf").write_bytes(b"GGUFnot")
    assert "cannot be read as GGUF" in refused("evaluate", tmp_path / "broken.gguf")


def test_a_masked_model_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    assert "bert model (BertForMaskedLM)" in refused("evaluate", tmp_path / "bert")


def test_nan_weights_name_the_examples(files: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(files["model"], broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    line = refused("warmup", *options(files, model=broken, probe=None), *QUICK)
    assert "training loss became nan" in line
    assert re.search(r"in the batch of ([bf]\d(, )?){4};", line)
    assert invoke("warmup", *options(files, probe=None), *QUICK, "--force").exit_code == 0
    line = refused(
        "attribute", *options(files, model=broken, adapter=files["out"], out=tmp_path / "s")
    )
    assert "not finite" in line
    assert "probe row" in line
    line = refused("evaluate", broken, "--pairs", files["probe"], "--texts", files["train"])
    assert "log-likelihood" in line


def test_a_selection_of_another_train_set(files: dict[str, Path], tmp_path: Path) -> None:
    assert invoke("warmup", *options(files, probe=None), *QUICK).exit_code == 0
    selection = tmp_path / "selection.parquet"
    pd.DataFrame({"id": ["x"], "selected": [True]}).to_parquet(selection)
    arguments = options(
        files, probe=None, adapter=files["out"], selection=selection, out=tmp_path / "m"
    )
    assert "a selection of this train set" in refused("mitigate", *arguments)
    assert "unknown method 'nppo' (did you mean 'npo'?)" in refused(
        "mitigate", *arguments, "--method", "nppo"
    )


def test_missing_options_are_named(files: dict[str, Path]) -> None:
    line = refused("attribute", "--model", files["model"])
    assert "--train, --probe, --out not given" in line
    assert "--run" in line


def test_an_output_folder_of_something_else_is_never_touched(files: dict[str, Path]) -> None:
    files["out"].mkdir()
    precious = files["out"] / "thesis.txt"
    precious.write_text("mine")
    line = refused("warmup", *options(files, probe=None), *QUICK)
    assert "is no output of biasdiff (it holds thesis.txt)" in line
    refused("warmup", *options(files, probe=None), *QUICK, "--force")
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y cannot be written"),
    ],
)
def test_disk_faults(
    fault: Exception, message: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from biasdiff.pipeline import warmup

    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(warmup, "write_json", fail)
    assert message in refused("warmup", *options(files, probe=None), *QUICK)
    monkeypatch.undo()
    assert invoke("warmup", *options(files, probe=None), *QUICK).exit_code == 0


def test_a_bug_is_not_swallowed(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from biasdiff.pipeline import warmup

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(warmup, "write_json", fail)
    result = invoke("warmup", *options(files, probe=None), *QUICK)
    assert isinstance(result.exception, ZeroDivisionError)


def test_debug_shows_the_error_itself(tmp_path: Path) -> None:
    from biasdiff.errors import ConfigError

    result = invoke("run", tmp_path / "absent.yaml", "--debug")
    assert isinstance(result.exception, ConfigError)


def test_interrupt_leaves_a_resumable_run(
    tiny_folder: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from biasdiff.pipeline import mitigate

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small_tree(tmp_path, tiny_folder("llama"))))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(mitigate.METHODS, "npo", interrupt)
    result = invoke("run", config)
    assert result.exit_code == 130
    assert "goes on from here" in result.stderr
    monkeypatch.undo()
    result = invoke("run", config)
    assert result.exit_code == 0, result.output
    assert "mitigate (retrain): complete, nothing to do" in result.stderr


def test_help_answers_in_under_a_second() -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "biasdiff", "--help"], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - began)
        assert "attribute" in done.stdout
    assert min(seconds) < 1
