from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from biasdiff.data.records import TrainExample, load_train_set
from biasdiff.errors import DataError


@pytest.fixture
def train_file(tmp_path: Path) -> Any:
    def write(*rows: dict[str, Any]) -> Path:
        path = tmp_path / "train.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return path

    return write


def test_texts_with_everything(train_file: Any) -> None:
    path = train_file(
        {"id": "a", "text": "One.", "is_bias": 1, "bias_type": "age", "other": 5},
        {"text": "Two.", "is_bias": 0},
        {"id": 7, "text": "Three."},
        {"id": "", "text": "Four.", "is_bias": None, "bias_type": ""},
    )
    assert load_train_set(path) == [
        TrainExample(id="a", row=0, text="One.", is_bias=1, bias_type="age"),
        TrainExample(id="row-1", row=1, text="Two.", is_bias=0),
        TrainExample(id="7", row=2, text="Three."),
        TrainExample(id="row-3", row=3, text="Four."),
    ]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, ending: str) -> None:
    table = pd.DataFrame(
        {"text": ["One, two.", 'A "b"'], "is_bias": [1, 0], "bias_type": ["a", ""]}
    )
    path = tmp_path / f"t{ending}"
    if ending == ".csv":
        table.to_csv(path, index=False)
    elif ending == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    assert load_train_set(path) == [
        TrainExample(id="row-0", row=0, text="One, two.", is_bias=1, bias_type="a"),
        TrainExample(id="row-1", row=1, text='A "b"', is_bias=0),
    ]


def test_prompts_and_completions(train_file: Any) -> None:
    path = train_file({"prompt": "Q: ", "completion": "A."}, {"prompt": "", "completion": "B."})
    found = load_train_set(path)
    assert [(e.prompt, e.completion) for e in found] == [("Q: ", "A."), ("", "B.")]
    assert found[0].shown() == "Q: A."


def test_chats(train_file: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    found = load_train_set(train_file({"messages": messages}))
    assert found[0].messages == tuple(messages)
    assert found[0].shown() == "user: Hi\nassistant: Hello"


def test_another_text_column(train_file: Any) -> None:
    path = train_file({"sentence": "One.", "prompt": "x", "completion": "y"})
    assert load_train_set(path, text_column="sentence")[0].text == "One."


@pytest.mark.parametrize("columns", [{"txt": "a"}, {"Text": "a"}, {"texts": "a", "id": "1"}])
def test_a_misspelt_column_gets_the_nearest_name(train_file: Any, columns: dict[str, str]) -> None:
    near = next(iter(columns))
    with pytest.raises(DataError, match=rf"has the columns .*\(did you mean '{near}'\?\)") as error:
        load_train_set(train_file(columns))
    assert "expected a column 'text', or 'prompt' and 'completion', or 'messages'" in str(
        error.value
    )
    assert "--text-column" in str(error.value)


def test_a_missing_column_without_a_near_name(train_file: Any) -> None:
    with pytest.raises(DataError, match=r"has the columns 'a', 'prompt'; expected a column 'text'"):
        load_train_set(train_file({"a": "x", "prompt": "x"}))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        (None, "is empty"),
        (3, "is 3"),
        (["a"], r"is \['a'\]"),
    ],
)
def test_a_text_that_is_empty_or_no_string(train_file: Any, value: object, found: str) -> None:
    path = train_file({"text": "fine"}, {"text": "fine"}, {"text": value})
    with pytest.raises(DataError, match=rf"row 2: 'text' {found}; expected a non-empty string"):
        load_train_set(path)


def test_a_row_without_the_column(train_file: Any) -> None:
    with pytest.raises(DataError, match="row 1: 'text' is empty"):
        load_train_set(train_file({"text": "fine"}, {"other": "x"}))


def test_a_short_csv_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,text\na,fine\nb\n")
    with pytest.raises(DataError, match="row 1: 'text' is empty"):
        load_train_set(tmp_path / "t.csv")


def test_an_empty_completion(train_file: Any) -> None:
    path = train_file({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""})
    with pytest.raises(DataError, match="row 1: 'completion' is empty"):
        load_train_set(path)


def test_repeated_ids(train_file: Any) -> None:
    path = train_file(*({"id": name, "text": "x"} for name in ("a", "b", "b", "c", "c")))
    with pytest.raises(DataError, match="has 2 repeated ids, the first 'b'; expected unique ids"):
        load_train_set(path)


def test_an_id_that_repeats_a_made_one(train_file: Any) -> None:
    with pytest.raises(DataError, match="1 repeated ids, the first 'row-1'"):
        load_train_set(train_file({"id": "row-1", "text": "x"}, {"text": "y"}))


@pytest.mark.parametrize("value", [2, "yes", -1, 0.5])
def test_ground_truth_of_another_kind(train_file: Any, value: object) -> None:
    path = train_file({"text": "x", "is_bias": 1}, {"text": "x", "is_bias": value})
    with pytest.raises(DataError, match=rf"row 1: 'is_bias' is {value!r}; expected 0 or 1"):
        load_train_set(path)


@pytest.mark.parametrize(
    ("value", "truth"), [(1, 1), ("0", 0), (1.0, 1), (True, 1), ("False", 0), ("", None)]
)
def test_ground_truth_as_it_is_written(train_file: Any, value: object, truth: int | None) -> None:
    assert load_train_set(train_file({"text": "x", "is_bias": value}))[0].is_bias == truth


@pytest.mark.parametrize(
    "messages",
    [[], "hi", None, [{"role": "user"}], [{"role": "user", "content": 3}], ["hi"], {"a": 1}],
)
def test_messages_that_are_none(train_file: Any, messages: object) -> None:
    good = [{"role": "user", "content": "x"}]
    path = train_file({"messages": good}, {"messages": messages})
    with pytest.raises(DataError, match=r"row 1: 'messages' is .*; expected a list of {'role'"):
        load_train_set(path)
