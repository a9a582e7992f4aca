from __future__ import annotations

from pathlib import Path

import pytest

from biasdiff.data.probe import ProbePair, save_probe_pairs
from biasdiff.errors import DataError
from biasdiff.evaluation.crows_pairs import EXPECTED, FILE, VARIABLE, load_crows_pairs


def write(folder: Path, *, stereo: int, antistereo: int) -> None:
    kinds = ["stereo"] * stereo + ["antistereo"] * antistereo
    path = folder / FILE
    path.parent.mkdir()
    save_probe_pairs([ProbePair("a", "b", kind, "age", i) for i, kind in enumerate(kinds)], path)  # type: ignore[arg-type]


def test_the_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(DataError, match="BIASDIFF_DATA_DIR is not set; expected a folder that hol"):
        load_crows_pairs()


def test_the_file_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"crows_pairs_anonymized\.csv does not exist; .* download"):
        load_crows_pairs()


def test_the_counts_of_the_original(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    write(tmp_path, **EXPECTED)
    assert len(load_crows_pairs()) == 1508


def test_other_counts_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    write(tmp_path, stereo=3, antistereo=2)
    with pytest.raises(
        DataError, match="has 3 stereo and 2 antistereo rows; expected 1290 and 218"
    ):
        load_crows_pairs()
