from __future__ import annotations

from pathlib import Path

import pytest

from biasdiff.cache import cache_dir, cached_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("BIASDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/biasdiff")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "biasdiff"


def test_a_folder_is_built_once(cache: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "weights").write_text("w")

    for _ in range(2):
        assert cached_folder("models/x", build) == cache / "models" / "x"
    assert len(built) == 1
    assert (cache / "models" / "x" / "weights").read_text() == "w"
    assert [p.name for p in (cache / "models").iterdir()] == ["x"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_build_leaves_no_half_folder(cache: Path, error: type[BaseException]) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("w")
        raise error

    with pytest.raises(error):
        cached_folder("models/x", build)
    assert list((cache / "models").iterdir()) == []
    cached_folder("models/x", lambda folder: (folder / "whole").touch())
    assert [p.name for p in (cache / "models" / "x").iterdir()] == ["whole"]


def test_a_folder_that_another_process_built_meanwhile_is_kept(cache: Path) -> None:
    def build(folder: Path) -> None:
        (cache / "models" / "x").mkdir()
        (cache / "models" / "x" / "theirs").touch()
        (folder / "ours").touch()

    folder = cached_folder("models/x", build)
    assert [p.name for p in folder.iterdir()] == ["theirs"]
    assert [p.name for p in (cache / "models").iterdir()] == ["x"]
