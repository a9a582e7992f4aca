from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from biasdiff.data.probe import COLUMNS, load_probe_pairs, require_twins, save_probe_pairs
from biasdiff.errors import DataError

GOOD = {
    "sent_more": "The nurse, she said.",
    "sent_less": "The nurse, he said.",
    "stereo_antistereo": "stereo",
    "bias_type": "gender",
    "stereotype_id": "s1",
}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "probe.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_pairs_in_crows_pairs_columns(tmp_path: Path) -> None:
    pairs = load_probe_pairs(write(tmp_path, GOOD, {**GOOD, "stereo_antistereo": "antistereo"}))
    assert [(p.row, p.stereo_antistereo) for p in pairs] == [(0, "stereo"), (1, "antistereo")]
    assert pairs[0].sent_less == GOOD["sent_less"]
    assert pairs[0].stereotype_id == "s1"


def test_pairs_survive_being_saved(tmp_path: Path) -> None:
    pairs = load_probe_pairs(write(tmp_path, GOOD, {**GOOD, "sent_less": ""}))
    other = replace(pairs[1], extra={"note": "no stereotype_id"})
    save_probe_pairs([pairs[0], other], tmp_path / "again.csv")
    again = load_probe_pairs(tmp_path / "again.csv")
    assert again[0] == replace(pairs[0], extra={"stereotype_id": "s1", "note": ""})
    assert again[1].extra == {"stereotype_id": "", "note": "no stereotype_id"}
    assert again[1].sent_less == ""


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column(tmp_path: Path, column: str) -> None:
    row = {name: value for name, value in GOOD.items() if name != column}
    with pytest.raises(DataError, match=rf"has no column '{column}'.*; expected the columns sent"):
        load_probe_pairs(write(tmp_path, row))


def test_a_misspelt_column_gets_the_nearest_name(tmp_path: Path) -> None:
    row = {**GOOD, "sent_mor": GOOD["sent_more"]}
    row.pop("sent_more")
    with pytest.raises(DataError, match=r"no column 'sent_more' \(did you mean 'sent_mor'\?\)"):
        load_probe_pairs(write(tmp_path, row))


@pytest.mark.parametrize("column", ["sent_more", "bias_type"])
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_field(tmp_path: Path, column: str, value: str) -> None:
    with pytest.raises(DataError, match=f"row 1: '{column}' is empty; expected a non-empty string"):
        load_probe_pairs(write(tmp_path, GOOD, {**GOOD, column: value}))


@pytest.mark.parametrize("value", ["", "Stereo", "anti"])
def test_an_unknown_direction(tmp_path: Path, value: str) -> None:
    with pytest.raises(DataError, match=rf"row 0: 'stereo_antistereo' is '{value}'; expected 'st"):
        load_probe_pairs(write(tmp_path, {**GOOD, "stereo_antistereo": value}))


@pytest.mark.parametrize("column", ["sent_more", "stereo_antistereo", "bias_type"])
def test_a_jsonl_row_that_lacks_a_key(tmp_path: Path, column: str) -> None:
    short = {name: value for name, value in GOOD.items() if name != column}
    path = tmp_path / "probe.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(short)}\n")
    with pytest.raises(DataError, match=f"row 1: '{column}' is "):
        load_probe_pairs(path)


def test_a_twin_that_is_no_string(tmp_path: Path) -> None:
    path = tmp_path / "probe.jsonl"
    path.write_text(json.dumps({**GOOD, "sent_less": 5}))
    with pytest.raises(DataError, match="row 0: 'sent_less' is 5; expected a string, or nothing"):
        load_probe_pairs(path)


def test_nothing_is_an_empty_string(tmp_path: Path) -> None:
    path = tmp_path / "probe.jsonl"
    path.write_text(json.dumps({**GOOD, "sent_less": None, "stereotype_id": None}))
    pair = load_probe_pairs(path)[0]
    assert (pair.sent_less, pair.stereotype_id) == ("", "")


def test_probes_without_twins(tmp_path: Path) -> None:
    lonely = {**GOOD, "sent_less": " "}
    pairs = load_probe_pairs(write(tmp_path, GOOD, lonely, GOOD, lonely))
    with pytest.raises(
        DataError,
        match=r"2 of 4 probe rows have no 'sent_less', the first row 1; .* 'contrast'",
    ) as error:
        require_twins(pairs, purpose="the estimator 'contrast'")
    assert "use the estimator 'less'" in str(error.value)
    require_twins(pairs[::2], purpose="anything")
