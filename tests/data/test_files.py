from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from biasdiff.data.files import read_rows
from biasdiff.errors import DataError

ROWS = [
    {"id": "a", "text": 'Comma, "quote" and\nnew line.', "bias_type": "age"},
    {"id": "b", "text": "Ünïcode – 日本語 😀", "bias_type": ""},
    {"id": "c", "text": "plain", "bias_type": "gender"},
]


def write(folder: Path, ending: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / f"rows{ending}"
    if ending in (".jsonl", ".json"):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif ending.lower() == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".CSV"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    assert read_rows(write(tmp_path, ending)) == ROWS
    assert read_rows(str(tmp_path / f"rows{ending}")) == ROWS


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path, ending)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_rows(path) == ROWS


def test_blank_lines_of_jsonl_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a"}\n\n  \n{"text": "b"}')
    assert [row["text"] for row in read_rows(path)] == ["a", "b"]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_missing_file(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError, match=rf"nothing{ending} does not exist; .*; check the path\."):
        read_rows(tmp_path / f"nothing{ending}")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; expected a data file; name the file inside"):
        read_rows(tmp_path)


def test_unknown_ending(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("a")
    with pytest.raises(DataError, match=r"ends in '.xlsx'; expected one of .jsonl, .json, .csv,"):
        read_rows(tmp_path / "rows.xlsx")


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_no_rows(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        pd.DataFrame({"text": []}).to_parquet(path)
    else:
        path.write_text("text\n" if ending == ".csv" else "\n\n")
    with pytest.raises(DataError, match=r"has no rows; expected at least one row"):
        read_rows(path)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_an_empty_file(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"rows{ending}").touch()
    with pytest.raises(DataError, match="has no rows"):
        read_rows(tmp_path / f"rows{ending}")


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
@pytest.mark.parametrize("line", [2, 3000])
def test_invalid_utf8_names_the_line(tmp_path: Path, ending: str, line: int) -> None:
    good = b'{"text": "fine"}' if ending == ".jsonl" else b"fine"
    lines = [b"text" if ending == ".csv" else good] + [good] * 4000
    lines[line - 1] = good.replace(b"fine", b"caf\xe9")
    path = tmp_path / f"rows{ending}"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=rf"not valid UTF-8 in line {line}; expected UTF-8 text"):
        read_rows(path)


@pytest.mark.parametrize("bad", ["{", "{'text': 'a'}", '{"text": "a"} extra', "text"])
def test_bad_json_names_the_line(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{bad}\n')
    with pytest.raises(DataError, match=r"line 3 is not JSON \(.*\); expected one JSON object a"):
        read_rows(path)


@pytest.mark.parametrize(("bad", "kind"), [('["a"]', "list"), ('"a"', "str"), ("3", "int")])
def test_json_that_is_no_object(tmp_path: Path, bad: str, kind: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(bad)
    with pytest.raises(DataError, match=f"line 1 holds a {kind}; expected one JSON object a line"):
        read_rows(path)


def test_csv_with_more_fields_than_the_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\na,fine\nb,one, two, three\n")
    with pytest.raises(
        DataError, match="line 3 has more fields than the header; expected 2 fields; quote texts"
    ):
        read_rows(path)


@pytest.mark.parametrize("text", ['text\n"open', 'text\n"a"b\n'])
def test_malformed_csv(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"line 2 is malformed \(.*\); expected comma-separated"):
        read_rows(path)


@pytest.mark.parametrize("damage", ["no parquet", "empty", "truncated", "broken footer"])
def test_corrupt_parquet(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path, ".parquet")
    whole = path.read_bytes()
    content = {
        "no parquet": b"text\nhello, this is a CSV\n",
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "broken footer": b"PAR1" + b"\xff" * 60 + (40).to_bytes(4, "little") + b"PAR1",
    }
    path.write_bytes(content[damage])
    with pytest.raises(DataError, match=r"is not a Parquet file \(.+\); expected a Parquet file"):
        read_rows(path)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, ".jsonl")

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read; expected read permission"):
        read_rows(path)


def test_a_dataset_id(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, *, split: str) -> list[dict[str, str]]:
        asked.append((name, split))
        return ROWS

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert read_rows("someone/some-set") == ROWS
    assert asked == [("someone/some-set", "train")]


@pytest.mark.parametrize("reason", ["Couldn't reach the hub\nlong story", ""])
def test_a_dataset_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    def load_dataset(name: str, *, split: str) -> None:
        raise ConnectionError(reason)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"'someone/set' is neither a file nor a dataset .*\(ConnectionError: "
    ) as error:
        read_rows("someone/set")
    assert "long story" not in str(error.value)
