from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from biasdiff.cli.app import app
from biasdiff.errors import DataError
from biasdiff.probing.lexicon import GroupWord, Lexicon, load_lexicon, save_lexicon

WORDS = (
    GroupWord("age", "old people", "students"),
    GroupWord("age", "grown-up", ""),
    GroupWord("religion", "Jehovah's Witness", "Catholic"),
    GroupWord("gender", "students", "pupils"),
    GroupWord("age", "old people", "teenagers"),
)


def test_words_and_swaps_are_known_one_by_one_and_by_type() -> None:
    lexicon = Lexicon(WORDS)
    known = ["old", "People", "STUDENTS", "grown-up", "teenagers"]
    assert all(lexicon.knows(word, "age") for word in known)
    assert lexicon.knows("jehovah's", "religion")
    assert lexicon.knows("catholic", "religion")
    assert not lexicon.knows("old people", "age")
    assert not lexicon.knows("grown", "age")
    assert not lexicon.knows("old", "gender")
    assert not lexicon.knows("old", "no such type")
    assert not lexicon.knows("", "age")


def test_the_first_swap_of_a_word_counts_and_a_word_without_one_is_only_known() -> None:
    lexicon = Lexicon(WORDS)
    assert lexicon.swaps() == {
        "old people": WORDS[0],
        "Jehovah's Witness": WORDS[2],
        "students": WORDS[3],
    }
    assert lexicon.swaps(["age", "religion"]) == {
        "old people": WORDS[0],
        "Jehovah's Witness": WORDS[2],
    }
    assert lexicon.swaps([]) == {}


def test_a_lexicon_survives_being_saved(tmp_path: Path) -> None:
    path = tmp_path / "words.csv"
    save_lexicon(Lexicon(WORDS), path)
    assert load_lexicon(path).words == WORDS
    assert path.read_text(encoding="utf-8").splitlines()[:3] == [
        "bias_type,word,swap",
        "age,old people,students",
        "age,grown-up,",
    ]


def test_spaces_and_missing_swaps(tmp_path: Path) -> None:
    path = tmp_path / "words.csv"
    path.write_text("bias_type,word,swap,note\n age , old , young ,kept\nage,grey\n")
    expected = (GroupWord("age", "old", "young"), GroupWord("age", "grey", ""))
    assert load_lexicon(path).words == expected
    lines = '{"bias_type": "age", "word": "old", "swap": "young"}\n{"bias_type": "age", "word": '
    (tmp_path / "words.jsonl").write_text(lines + '"grey"}\n')
    assert load_lexicon(tmp_path / "words.jsonl").words == expected


@pytest.mark.parametrize("column", ["bias_type", "word", "swap"])
def test_a_missing_column(tmp_path: Path, column: str) -> None:
    path = tmp_path / "words.csv"
    path.write_text("bias_type,word,swap\nage,old,young\n".replace(column, f"{column}s"))
    message = rf"words.csv has no column '{column}' \(did you mean '{column}s'\?\); expected the"
    with pytest.raises(DataError, match=message):
        load_lexicon(path)


@pytest.mark.parametrize("row", [",old,young", "age,,young", "age, ,young"])
def test_an_empty_word_or_type(tmp_path: Path, row: str) -> None:
    path = tmp_path / "words.csv"
    path.write_text(f"bias_type,word,swap\nage,new,old\n{row}\n")
    with pytest.raises(DataError, match=r"row 1: 'word' or 'bias_type' is empty; expected both"):
        load_lexicon(path)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a small file stand for the shipped lexicon."""
    path = tmp_path / "shipped.csv"
    save_lexicon(Lexicon(WORDS), path)
    monkeypatch.setattr("biasdiff.probing.lexicon.FILE", path)
    return path


def written(out: Path) -> Any:
    return CliRunner().invoke(app, ["probe", "lexicon", "--out", str(out)])


def test_the_shipped_lexicon_is_written_for_editing(shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder/mine.csv"
    result = written(out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"5 words, {out}\n"
    assert out.read_bytes() == shipped.read_bytes()
    assert load_lexicon().words == WORDS


def test_an_edited_lexicon_is_not_overwritten(shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.csv"
    out.write_text("my own words")
    result = written(out)
    assert result.exit_code == 2
    assert "mine.csv exists; expected a new file, lest words of your own be lost" in result.stderr
    assert out.read_text() == "my own words"
