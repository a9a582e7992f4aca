from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from biasdiff.data.encoding import encode_text
from biasdiff.errors import ConfigError, DataError
from biasdiff.evaluation.benchmark import Inputs, Subject
from biasdiff.evaluation.lm_eval_harness import (
    BENCHMARK,
    compare_tasks,
    frame_of,
    score_tasks,
    task_metrics,
)
from biasdiff.evaluation.registry import BENCHMARKS, chosen_benchmarks
from biasdiff.training.token_scores import log_likelihoods

Loader = Callable[..., tuple[Any, Any]]
INSTALLED = importlib.util.find_spec("lm_eval") is not None


def inputs(**options: Any) -> Inputs:
    return Inputs(options={"lm_eval": options})


def sample(doc_id: int, chosen_filter: str = "none", **values: Any) -> dict[str, Any]:
    return {"doc_id": doc_id, "filter": chosen_filter, "metrics": list(values), **values}


RESULTS: dict[str, Any] = {
    "results": {
        "choice": {
            "alias": "choice",
            "acc,none": 0.75,
            "acc_stderr,none": "N/A",
            "pct_stereotype,none": 0.25,
            "f1,none": 0.6,
        },
        "sums": {"exact_match,strict": 0.5, "exact_match,flexible": 1.0},
        "text": {
            "perplexity,none": math.exp(1.5),
            "word_perplexity,none": math.exp(9 / 4),
            "bits_per_byte,none": 9 / 20 / math.log(2),
        },
    },
    "higher_is_better": {
        "choice": {"acc": True, "pct_stereotype": False},
        "text": {"perplexity": False, "word_perplexity": False, "bits_per_byte": False},
    },
    "samples": {
        "choice": [
            sample(0, acc=1.0, pct_stereotype=1.0, f1=(1, 1)),
            sample(1, acc=1.0, pct_stereotype=0.0, f1=(0, 1)),
            sample(2, acc=1.0, pct_stereotype=0.0, f1=(1, 0)),
            sample(3, acc=0.0, pct_stereotype=0.0, f1=(1, 1)),
        ],
        "sums": [
            sample(0, "strict", exact_match=1),
            sample(1, "strict", exact_match=0),
            sample(0, "flexible", exact_match=1),
            sample(1, "flexible", exact_match=1),
        ],
        "text": [
            sample(0, perplexity=-1.0, word_perplexity=(-3.0, 1), bits_per_byte=(-3.0, 8)),
            sample(1, perplexity=-2.0, word_perplexity=(-6.0, 3), bits_per_byte=(-6.0, 12)),
        ],
    },
}


class Stub(ModuleType):
    """Stands for the harness and for its modules."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__("lm_eval")
        self.failure = failure
        self.calls: list[dict[str, Any]] = []
        self.made: list[dict[str, Any]] = []
        stub = self

        class Manager:
            all_tasks = ("choice", "crows_pairs_english", "sums", "text")

            def __init__(self, include_path: str | None = None) -> None:
                self.include_path = include_path

        class Model:
            def __init__(self, **settings: Any) -> None:
                stub.made.append(settings)

        self.TaskManager, self.HFLM = Manager, Model

    def simple_evaluate(self, **settings: Any) -> dict[str, Any]:
        self.calls.append(settings)
        if self.failure is not None:
            raise self.failure
        return RESULTS


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    module = Stub()
    for name in ("", ".evaluator", ".models", ".models.huggingface", ".tasks"):
        monkeypatch.setitem(sys.modules, f"lm_eval{name}", module)
    return module


SUBJECT = Subject(model="a model", tokenizer=["a tokenizer"], max_length=64, max_tokens=256)


def test_it_is_an_extra_that_is_run_when_named() -> None:
    assert BENCHMARKS["lm_eval"] is BENCHMARK
    assert BENCHMARK not in chosen_benchmarks(["all"])
    assert chosen_benchmarks(["lm_eval"]) == [BENCHMARK]


def test_what_to_install_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"run pip install 'biasdiff\[lm-eval\]'"):
        BENCHMARK.files({})
    with pytest.raises(ConfigError, match="expected the package lm-eval"):
        score_tasks(SUBJECT, inputs(tasks=["choice"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"lm_eval: tasks is \(\); expected a list of names of tasks, for example"),
        ({"tasks": []}, r"lm_eval: tasks is \[\]; expected a list"),
        ({"tasks": "choice"}, r"lm_eval: tasks is 'choice'; expected a list"),
        ({"tasks": ["crows_pairs_englsh"]}, r"no task 'crows_pairs_englsh' \(did you mean 'crows_"),
        ({"tasks": ["choice"], "limits": 3}, r"no option 'limits' \(did you mean 'limit'\?\)"),
        ({"tasks": ["choice"], "batch_size": 0}, r"batch_size is 0; expected a whole number"),
        ({"tasks": ["choice"], "limit": True}, r"limit is True; expected a whole number"),
        ({"tasks": ["choice"], "include": "/none"}, r"include is '/none'; expected a folder"),
    ],
)
def test_wrong_options(stub: Stub, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score_tasks(SUBJECT, inputs(**options))
    assert not stub.calls


def test_data_that_cannot_be_had(stub: Stub) -> None:
    stub.failure = ConnectionError("Couldn't reach 'x' on the Hub\nmore")
    with pytest.raises(
        DataError,
        match=r"choice cannot be had \(ConnectionError: Couldn't reach 'x' on the Hub\)",
    ):
        score_tasks(SUBJECT, inputs(tasks=["choice"]))


def test_what_the_harness_is_given(stub: Stub, tmp_path: Path) -> None:
    score_tasks(SUBJECT, inputs(tasks=["choice", "sums"], limit=5, batch_size=4))
    score_tasks(
        SUBJECT, Inputs(limit=7, options={"lm_eval": {"tasks": ["text"], "include": str(tmp_path)}})
    )
    first, second = stub.calls
    assert first["tasks"] == ["choice", "sums"]
    assert (first["limit"], second["limit"]) == (5, 7)
    assert second["task_manager"].include_path == str(tmp_path)
    assert [made["batch_size"] for made in stub.made] == [4, 8]
    assert stub.made[0]["pretrained"] == "a model"
    assert stub.made[0]["tokenizer"] == SUBJECT.tokenizer
    assert stub.made[0]["tokenizer"] is not SUBJECT.tokenizer
    assert stub.made[0]["max_length"] == 64


def test_the_frame_and_the_figures_by_hand(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from biasdiff.progress import configure

    configure(silent=False, quiet=True)
    try:
        frame = frame_of(RESULTS)
    finally:
        configure(silent=True)
    assert "choice/f1 left out" in capsys.readouterr().err
    assert frame["row"].is_unique
    assert frame.loc[0, ["row", "task", "doc_id", "metric", "value"]].tolist() == [
        "choice/0/acc",
        "choice",
        0,
        "acc",
        1.0,
    ]
    frame.to_parquet(tmp_path / "frame.parquet")
    metrics = task_metrics(pd.read_parquet(tmp_path / "frame.parquet"))
    assert {name: metric.value for name, metric in metrics.items()} == pytest.approx(
        {
            "choice/acc": 0.75,
            "choice/pct_stereotype": 0.25,
            "sums/exact_match,strict": 0.5,
            "sums/exact_match,flexible": 1.0,
            "text/perplexity": math.exp(1.5),
            "text/word_perplexity": math.exp(9 / 4),
            "text/bits_per_byte": 9 / 20 / math.log(2),
        }
    )
    accuracy = metrics["choice/acc"]
    assert accuracy.standard_error == pytest.approx(np.std([1, 1, 1, 0], ddof=1) / 2)
    assert (accuracy.n, accuracy.direction) == (4, "higher_is_better")
    assert metrics["choice/pct_stereotype"].direction == "none"
    assert metrics["text/perplexity"].direction == "lower_is_better"
    assert metrics["text/perplexity"].standard_error == pytest.approx(math.exp(1.5) * 0.5)
    assert metrics["text/perplexity"].interval == pytest.approx((math.exp(1), math.exp(2)))


def test_nothing_that_can_be_recomputed() -> None:
    only = {
        "results": {"choice": {"f1,none": 0.6}},
        "samples": {"choice": [sample(0, f1=(1, 1)), sample(1, f1=(0, 1))]},
    }
    with pytest.raises(DataError, match="no figure of choice is a mean of values of samples"):
        frame_of(only)


def test_paired_differences() -> None:
    before = frame_of(RESULTS)
    after = before.copy()
    after.loc[after["metric"] == "acc", "value"] = [0.0, 0.0, 1.0, 0.0]
    text = after["task"] == "text"
    after.loc[text, "value"] = after.loc[text, "value"] * 2
    found = compare_tasks(after, before)
    assert found["choice/acc"].value == pytest.approx(-0.5)
    assert found["choice/acc"].p_value == pytest.approx(0.5)  # two changed, both one way
    assert found["choice/acc"].n == 4
    assert found["choice/pct_stereotype"].p_value == 1.0
    assert found["text/perplexity/perplexity_ratio"].value == pytest.approx(math.exp(1.5))
    assert found["text/bits_per_byte"].value == pytest.approx(9 / 20 / math.log(2))
    with pytest.raises(DataError, match="other rows"):
        compare_tasks(after.iloc[::-1], before)


def test_one_metric_of_several_tasks_is_adjusted() -> None:
    before = frame_of(
        {
            "results": {"a": {"acc,none": 0.0}, "b": {"acc,none": 0.0}},
            "samples": {t: [sample(i, acc=0.0) for i in range(8)] for t in ("a", "b")},
        }
    )
    after = before.copy()
    after.loc[after["task"] == "a", "value"] = 1.0
    found = compare_tasks(after, before)
    assert found["a/acc"].p_value == pytest.approx(2 / 2**8)
    assert found["a/acc"].p_adjusted == pytest.approx(4 / 2**8)
    assert found["b/acc"].p_adjusted == 1.0


TASK = """\
task: local_pairs
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: ""
doc_to_choice: "{{{{[more, less]}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")
@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_harness_itself(
    tiny: Loader,
    adapted: Loader,
    with_adapter: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model, tokenizer = adapted("llama") if with_adapter else tiny("llama")
    pairs = [
        ("The nurse said she would be late.", "The nurse said he would be late."),
        ("The old man slept.", "The young man slept well."),
        ("Rain falls.", "A cat sleeps on the wall."),
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps({"more": more, "less": less}) for more, less in pairs))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "local_pairs.yaml").write_text(TASK.format(data=data))
    subject = Subject(model, tokenizer, 64, 256)
    given = inputs(tasks=["local_pairs"], include=str(tasks), batch_size=2)
    frame = score_tasks(subject, given)

    texts = [encode_text(tokenizer, side) for pair in pairs for side in pair]
    scores = log_likelihoods(model, texts, max_tokens=256)
    assert frame["value"].tolist() == (scores[::2] > scores[1::2]).astype(float).tolist()
    assert frame["row"].tolist() == [f"local_pairs/{i}/acc" for i in range(3)]
    metrics = task_metrics(frame)
    assert metrics["local_pairs/acc"].value == pytest.approx(frame["value"].mean())
    assert metrics["local_pairs/acc"].direction == "higher_is_better"
    assert tokenizer.pad_token is None  # the harness sets one, on a copy
