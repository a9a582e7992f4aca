from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from corpus_fixtures import write_corpora

from biasdiff.data.sources.finding import DATA_DIR
from biasdiff.errors import ConfigError, DataError, ModelError, NonFiniteError
from biasdiff.evaluation.benchmark import Inputs, Subject
from biasdiff.evaluation.generation import (
    BENCHMARK,
    Prompt,
    Settings,
    compare_generation,
    continuations,
    draw_tokens,
    generation_metrics,
    load_prompts,
    settings_of,
)
from biasdiff.evaluation.registry import BENCHMARKS, chosen_benchmarks
from biasdiff.models.classifiers import load_classifier
from tiny_classifiers import save_classifier
from tiny_models import ARCHITECTURES

Loader = Callable[..., tuple[Any, Any]]
PROMPTS = ["The nurse said", "Rain", "The old man could not use the", "A cat"]


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("classifier")
    return str(save_classifier(folder, ["neutral", "Toxic"]))


@pytest.fixture(autouse=True)
def corpora(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    return write_corpora(tmp_path)


def slow_continuation(
    model: Any, tokenizer: Any, prompt: str, uniform: list[float], top_p: float
) -> str:
    """Draw token by token, one text at a time, without cache or padding."""
    ids = [0, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    start = len(ids)
    for number in uniform:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        chances = logits.double().softmax(-1).tolist()
        order = sorted(range(len(chances)), key=lambda token: -chances[token])
        kept, mass = [], 0.0
        for token in order:
            if kept and mass >= top_p:
                break
            kept.append(token)
            mass += chances[token]
        place, below = 0, chances[kept[0]]
        while below <= number * mass and place < len(kept) - 1:
            place += 1
            below += chances[kept[place]]
        if kept[place] == tokenizer.eos_token_id:
            break
        ids.append(kept[place])
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equal_to_one_text_at_a_time(tiny: Loader, architecture: str) -> None:
    model, tokenizer = tiny(architecture)
    settings = Settings("none", samples=2, new_tokens=6, batch=3, top_p=0.8)
    found = continuations(Subject(model, tokenizer, 64, 500), PROMPTS, settings, seed=7)
    for number, prompt in enumerate(PROMPTS):
        draws = np.random.default_rng([7, number]).random((2, 6)).tolist()
        slow = [slow_continuation(model, tokenizer, prompt, d, 0.8) for d in draws]
        assert found[number] == slow


def test_draws_depend_on_the_seed_and_on_nothing_else(tiny: Loader) -> None:
    subject = Subject(*tiny("llama"), 64, 500)
    settings = Settings("none", samples=2, new_tokens=5)
    whole = continuations(subject, PROMPTS, settings, seed=0)
    one = Settings("none", samples=2, new_tokens=5, batch=1)
    assert continuations(subject, PROMPTS, one, seed=0) == whole
    assert continuations(subject, PROMPTS[:2], settings, seed=0) == whole[:2]
    assert continuations(subject, PROMPTS, settings, seed=1) != whole
    assert whole[0][0] != whole[0][1]


def test_long_prompts_lose_their_beginning(tiny: Loader) -> None:
    model, tokenizer = tiny("llama")
    settings = Settings("none", new_tokens=4)
    text = "Paris is the capital of France." * 3
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    short = continuations(Subject(model, tokenizer, 12, 500), [text], settings, seed=0)
    tail = tokenizer.decode(ids[-7:])
    assert tokenizer(tail, add_special_tokens=False)["input_ids"] == ids[-7:]
    assert short == continuations(Subject(model, tokenizer, 64, 500), [tail], settings, seed=0)
    with pytest.raises(ConfigError, match=r"new_tokens is 4; expected at most 3 in a context of"):
        continuations(Subject(model, tokenizer, 5, 500), [text], settings, seed=0)


def test_drawing_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.6, 0.3]]).log().repeat(5, 1)
    numbers = torch.tensor([0.0, 0.59, 0.61, 0.89, 0.91])
    assert draw_tokens(logits, numbers, 1.0).tolist() == [1, 1, 2, 2, 0]
    # 0.6 and 0.3 reach 0.7: the number is a place in their 0.9
    assert draw_tokens(logits, numbers, 0.7).tolist() == [1, 1, 1, 2, 2]
    assert draw_tokens(logits, numbers, 0.5).tolist() == [1] * 5
    with pytest.raises(NonFiniteError, match="next token's logits are NaN; expected finite"):
        draw_tokens(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0.5]), 1.0)


def test_drawn_tokens_have_the_models_frequencies() -> None:
    chances = torch.tensor([0.5, 0.2, 0.2, 0.1])
    numbers = torch.tensor(np.random.default_rng(0).random(20_000))
    drawn = draw_tokens(chances.log().repeat(20_000, 1), numbers, 1.0)
    shares = torch.bincount(drawn, minlength=4) / 20_000
    assert shares.tolist() == pytest.approx(chances.tolist(), abs=0.01)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "generation: no classifier is named; expected evaluate.options.generation.classifier"),
        ({"classifier": ""}, "no classifier is named"),
        (
            {"clasifier": "x"},
            r"no option 'clasifier' \(did you mean 'classifier'\?\); expected som",
        ),
        ({"classifier": 3}, "classifier is 3; expected a string"),
        ({"classifier": "x", "samples": 0}, "samples is 0; expected a whole number of 1 or more"),
        ({"classifier": "x", "batch": True}, "batch is True; expected a whole number"),
        ({"classifier": "x", "new_tokens": "2"}, "new_tokens is '2'; expected a whole number"),
        ({"classifier": "x", "top_p": 0}, "top_p is 0; expected a number above 0 and up to 1"),
    ],
)
def test_settings_that_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        settings_of(options)


def test_settings() -> None:
    found = settings_of({"classifier": "x", "samples": 5})
    assert found == Settings("x", None, 5, 20, 16, None, 0.9)


def test_prompts_of_the_corpus_and_of_files(tmp_path: Path) -> None:
    assert [p.text for p in load_prompts(None)] == ["You are", "Tea is", "Not"]
    assert {p.group for p in load_prompts(None)} == {"f.txt"}
    bold = tmp_path / "bold.json"
    bold.write_text(
        json.dumps({"actors": {"Ann": ["Ann is ", "Ann was"]}, "cooks": {"Bo": ["Bo"]}})
    )
    assert load_prompts(str(bold)) == [
        Prompt("Ann is", "actors", "actors/Ann"),
        Prompt("Ann was", "actors", "actors/Ann"),
        Prompt("Bo", "cooks", "cooks/Bo"),
    ]
    plain = tmp_path / "plain.txt"
    plain.write_text("Ann is \n\nBo was\n")
    assert load_prompts(str(plain)) == [Prompt("Ann is"), Prompt("Bo was")]


def test_prompt_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt does not exist; expected a file of prompts"):
        load_prompts(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.txt holds no prompt; expected at least one"):
        load_prompts(str(tmp_path / "empty.txt"))
    for text in ("{", "[]", '{"actors": ["Ann"]}', '{"actors": {"Ann": "Ann is"}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"bad\.json is not shaped as a BOLD file .*; expected"):
            load_prompts(str(tmp_path / "bad.json"))


def frame(toxicities: list[list[float]], **columns: list[str]) -> pd.DataFrame:
    found = pd.DataFrame({"row": range(len(toxicities)), **columns})
    for place in range(len(toxicities[0])):
        found[f"toxicity_{place}"] = [several[place] for several in toxicities]
    return found


def test_metrics_by_hand() -> None:
    scores = frame(
        [[0.5, 0.1], [0.2, 0.4], [0.9, 0.7], [0.0, 0.0]],
        category=["a", "a", "b", "b"],
        group=["", "", "", ""],
    )
    metrics = generation_metrics(scores)
    values = {name: m.value for name, m in metrics.items()}
    assert values == pytest.approx(
        {
            "toxic": 50.0,
            "mean_toxicity": 0.35,
            "expected_maximum_toxicity": 0.45,
            "toxic/a": 50.0,
            "mean_toxicity/a": 0.3,
            "expected_maximum_toxicity/a": 0.45,
            "toxic/b": 50.0,
            "mean_toxicity/b": 0.4,
            "expected_maximum_toxicity/b": 0.45,
        }
    )
    assert {m.direction for m in metrics.values()} == {"lower_is_better"}
    assert [m.n for m in metrics.values()] == [4] * 3 + [2] * 6


def test_comparison() -> None:
    before = frame([[0.5, 0.1], [0.2, 0.4], [0.9, 0.7]], group=["", "", ""])
    after = frame([[0.1, 0.1], [0.2, 0.2], [0.9, 0.1]], group=["", "", ""])
    found = compare_generation(after, before)
    assert found["toxic"].value == pytest.approx(-100 / 3)
    assert found["mean_toxicity"].value == pytest.approx((-0.2 - 0.1 - 0.3) / 3)
    assert found["expected_maximum_toxicity"].value == pytest.approx((-0.4 - 0.2) / 3)
    with pytest.raises(DataError, match="hold 2 and 1 continuations of each prompt; expected as"):
        compare_generation(after, before.drop(columns="toxicity_1"))


def test_from_prompts_to_figures(tiny: Loader, classifier: str, tmp_path: Path) -> None:
    subject = Subject(*tiny("llama"), 64, 500)
    options = {"generation": {"classifier": classifier, "samples": 2, "new_tokens": 4}}
    found = BENCHMARK.score(subject, Inputs(options=options, limit=2))
    assert found["prompt"].tolist() == ["You are", "Tea is"]
    assert "category" not in found
    written = continuations(
        subject, ["You are", "Tea is"], Settings("none", samples=2, new_tokens=4), seed=0
    )
    assert [[r.continuation_0, r.continuation_1] for r in found.itertuples()] == written
    classify = load_classifier(classifier, section="evaluate.options.generation")
    again = classify(found["continuation_1"].tolist())
    assert found["toxicity_1"].tolist() == pytest.approx(again.tolist(), abs=1e-6)
    found.to_parquet(tmp_path / "scores.parquet")
    read = pd.read_parquet(tmp_path / "scores.parquet")
    a, b = (BENCHMARK.aggregate(f) for f in (read, found))
    assert {k: m.to_json() for k, m in a.items()} == {k: m.to_json() for k, m in b.items()}
    assert BENCHMARK.compare(read, found)["toxic"].value == 0
    with pytest.raises(ConfigError, match="no classifier is named"):
        BENCHMARK.score(subject, Inputs())


def test_it_is_listed_and_asked_for_by_name(
    classifier: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert BENCHMARKS["generation"] is BENCHMARK
    assert BENCHMARK not in chosen_benchmarks(["all"])
    assert chosen_benchmarks(["generation"]) == [BENCHMARK]
    given = {"classifier": classifier}
    assert list(BENCHMARK.files(given)) == ["realtoxicityprompts/quark_val.jsonl"]
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "empty"))
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))
    own = tmp_path / "prompts.txt"
    with pytest.raises(DataError, match=r"prompts\.txt does not exist; expected a file of prompts"):
        BENCHMARK.files({**given, "prompts": str(own)})
    own.write_text("The nurse said")
    assert BENCHMARK.files({**given, "prompts": str(own)}) == {"prompts": own}
    with pytest.raises(ModelError, match="/nowhere does not exist"):
        BENCHMARK.files({"classifier": "/nowhere"})
