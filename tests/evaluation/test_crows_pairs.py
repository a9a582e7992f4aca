from __future__ import annotations

from pathlib import Path

import pytest

from biasdiff.data.probe import ProbePair, save_probe_pairs
from biasdiff.data.sources.crows_pairs import FILE
from biasdiff.data.sources.finding import DATA_DIR
from biasdiff.errors import DataError
from biasdiff.evaluation.crows_pairs import EXPECTED, load_crows_pairs


def write(folder: Path, *, stereo: int, antistereo: int) -> None:
    kinds = ["stereo"] * stereo + ["antistereo"] * antistereo
    path = folder / FILE.path
    path.parent.mkdir()
    save_probe_pairs([ProbePair("a", "b", kind, "age", i) for i, kind in enumerate(kinds)], path)  # type: ignore[arg-type]


def test_the_counts_of_the_original(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    write(tmp_path, **EXPECTED)
    assert len(load_crows_pairs()) == 1508


def test_other_counts_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    write(tmp_path, stereo=3, antistereo=2)
    with pytest.raises(
        DataError, match=r"3 stereo and 2 antistereo rows \(.* has sha256 .*\); expected 1290 and"
    ):
        load_crows_pairs()
