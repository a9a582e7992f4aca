"""The verbs on files that a user names, and their Python calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

import biasdiff
from cli.test_errors import QUICK, invoke
from pipeline.small_run import CLAIMS, small_tree, write_pairs, write_texts, write_train

Models = Callable[..., Path]


def test_verbs_one_after_the_other(tiny_folder: Models, tmp_path: Path) -> None:
    model = tiny_folder("gpt2")
    train = write_train(tmp_path / "train.jsonl")
    probe = write_pairs(tmp_path / "probe.csv", CLAIMS[:3])
    pairs = write_pairs(tmp_path / "pairs.csv", CLAIMS[3:])
    texts = write_texts(tmp_path / "texts.jsonl")
    common = ["--model", model, "--train", train]
    quiet = [*QUICK, "--quiet"]

    def ok(*arguments: object) -> str:
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    ok("warmup", *common, "--out", tmp_path / "warmup", *quiet)
    assert (tmp_path / "warmup/checkpoints/epoch-1/adam.safetensors").is_file()
    shown = ok(
        *("attribute", *common, "--probe", probe, "--adapter", tmp_path / "warmup"),
        *("--out", tmp_path / "scores", "--estimator", "less", "--fraction", "0.3", *quiet),
    )
    assert shown.strip().endswith("scores.parquet")
    record = json.loads((tmp_path / "scores/attribute.json").read_text())
    assert record["estimator"] == "less"
    assert record["throughput"]["tokens_per_second"] > 0
    assert record["peak_memory_bytes"] > 0
    assert record["versions"]["biasdiff"] == biasdiff.__version__
    ok(
        *("select", "--scores", tmp_path / "scores/scores.parquet", "--fraction", "0.3"),
        *("--out", tmp_path / "selection.parquet"),
    )
    selection = pd.read_parquet(tmp_path / "selection.parquet")
    assert list(selection) == ["id", "selected", "reason"]
    scores = pd.read_parquet(tmp_path / "scores/scores.parquet")
    assert selection["selected"].tolist() == scores["selected"].tolist()
    for method in ("retrain", "npo"):
        ok(
            *("mitigate", *common, "--adapter", tmp_path / "warmup", "--method", method),
            *("--selection", tmp_path / "selection.parquet", "--out", tmp_path / method, *quiet),
        )
        assert (tmp_path / method / "adapter_model.safetensors").is_file()
    out = tmp_path / "after.json"
    ok(
        *("evaluate", model, "--adapter", tmp_path / "npo", "--pairs", pairs, "--texts", texts),
        *("--out", out, "--quiet"),
    )
    metrics = json.loads(out.read_text())["metrics"]
    margin = metrics["stereotype_preference"]["margin"]
    per_pair = pd.read_parquet(tmp_path / "after.stereotype_preference.parquet")
    assert margin["value"] == pytest.approx(per_pair["margin"].mean())
    assert margin["n"] == len(per_pair) == 6
    assert margin["direction"] == "target: 0"
    assert metrics["stereotype_preference"]["metric"]["direction"] == "target: 50"
    assert metrics["perplexity"]["perplexity"]["direction"] == "lower_is_better"


def test_attribute_warms_up_first_without_an_adapter(tiny_folder: Models, tmp_path: Path) -> None:
    model, train = tiny_folder("llama"), write_train(tmp_path / "train.jsonl")
    probe = write_pairs(tmp_path / "probe.csv", CLAIMS[:3])
    files = ["--model", model, "--train", train, "--probe", probe]
    alone = invoke("attribute", *files, "--out", tmp_path / "alone", *QUICK)
    assert alone.exit_code == 0, alone.output
    invoke("warmup", *files[:4], "--out", tmp_path / "warmup", *QUICK)
    invoke("attribute", *files, "--adapter", tmp_path / "warmup", "--out", tmp_path / "two")
    one, two = (pd.read_parquet(tmp_path / d / "scores.parquet") for d in ("alone", "two"))
    pd.testing.assert_frame_equal(one, two)


def test_run_report_and_status(tiny_folder: Models, tmp_path: Path) -> None:
    tree = small_tree(tmp_path, tiny_folder("llama"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    folder = Path(tree["runs"]) / tree["name"]
    shown = invoke("run", tmp_path / "config.yaml", "--quiet")
    assert shown.exit_code == 0, shown.output
    assert "report.html" in shown.stdout
    table = invoke("status", folder)
    assert "mitigate-npo" in table.stdout
    assert "complete" in table.stdout
    again = invoke("report", "--run", folder, "--out", tmp_path / "copy.html")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "copy.html").read_bytes() == (folder / "report/report.html").read_bytes()
    assert invoke("evaluate", "--run", folder).exit_code == 0


def test_csv_parquet_and_chat_data_work(tiny_folder: Models, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(4)]
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    model = tiny_folder("llama", chat=True)
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in rows
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, chats)))
    for name in ("a.csv", "a.parquet", "chat.jsonl"):
        files = ["--model", model, "--train", tmp_path / name, "--out", tmp_path / f"w-{name}"]
        result = invoke("warmup", *files, *QUICK)
        assert result.exit_code == 0, result.output


def test_the_python_verbs_are_those_of_the_command_line() -> None:
    for name in ("run", "warmup", "attribute", "select", "mitigate", "evaluate", "report"):
        assert callable(getattr(biasdiff, name))
    with pytest.raises(AttributeError, match="no attribute 'atribute'"):
        _ = biasdiff.atribute
