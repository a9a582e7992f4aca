"""Files in the data folder, in the cache, or downloaded from a real server on this machine."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from biasdiff.data.sources import corpus as corpus_module
from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record
from biasdiff.data.sources.finding import (
    DATA_DIR,
    another_version,
    fetch,
    find,
    find_files,
    get_files,
    read_corpus,
)
from biasdiff.data.sources.registry import CORPORA
from biasdiff.errors import DataError

TEXT = b"one\ntwo\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve a text and an archive that holds it, as a corpus's canonical home does."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "plain.txt").write_bytes(TEXT)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data/packed.txt", TEXT)
    (folder / "all.zip").write_bytes(packed.getvalue())
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_DIR, raising=False)
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def corpus(*files: CorpusFile, alternatives: bool = False) -> Corpus:
    def read(found: object) -> Iterator[Record]:
        for name, path in found.items():  # type: ignore[attr-defined]
            for number, line in enumerate(path.read_text().splitlines()):
                yield Record(text=line, id=f"{name}-{number}")

    return replace(CORPORA["gap"], name="toy", files=files, read=read, alternatives=alternatives)


def pin(monkeypatch: pytest.MonkeyPatch, **hashes: str) -> None:
    known = {name.replace("__", "/").replace("_txt", ".txt"): h for name, h in hashes.items()}
    monkeypatch.setattr(corpus_module, "pins", lambda: known)
    monkeypatch.setattr("biasdiff.data.sources.finding.pins", lambda: known)


def test_a_pinned_file_is_fetched_once(
    home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pin(monkeypatch, toy__plain_txt=hashlib.sha256(TEXT).hexdigest())
    toy = corpus(CorpusFile("toy/plain.txt", f"{home}/plain.txt"))
    assert find_files(toy) is None
    files = get_files(toy)
    assert files == {"toy/plain.txt": tmp_path / "cache/data/toy/plain.txt"}
    assert [r.text for r in read_corpus(toy).records] == ["one", "two"]
    (tmp_path / "home/plain.txt").unlink()
    assert get_files(toy) == files
    assert find(toy.files[0])[0] == "cache"
    assert [p.name for p in (tmp_path / "cache/data/toy").iterdir()] == ["plain.txt"]


def test_the_data_folder_goes_before_the_cache(
    home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    toy = corpus(CorpusFile("toy/plain.txt", f"{home}/plain.txt"))
    get_files(toy)
    (tmp_path / "mine/toy").mkdir(parents=True)
    (tmp_path / "mine/toy/plain.txt").write_text("mine\n")
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "mine"))
    assert [r.text for r in read_corpus(toy).records] == ["mine"]


def test_another_hash_is_refused_and_nothing_is_left(
    home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pin(monkeypatch, toy__plain_txt="0" * 64, toy__packed_txt="1" * 64)
    for file in (
        CorpusFile("toy/plain.txt", f"{home}/plain.txt"),
        CorpusFile("toy/packed.txt", f"{home}/all.zip", "data/packed.txt"),
    ):
        with pytest.raises(DataError, match=r"has another sha256 than the pinned [01]{64}"):
            fetch(corpus(file))
    assert list((tmp_path / "cache/data/toy").iterdir()) == []


def test_a_hash_that_is_not_pinned_is_recorded(home: str, tmp_path: Path) -> None:
    fetch(corpus(CorpusFile("toy/plain.txt", f"{home}/plain.txt")))
    recorded = (tmp_path / "cache/data/toy/plain.txt.sha256").read_text()
    assert recorded == f"{hashlib.sha256(TEXT).hexdigest()}  plain.txt\n"


def test_a_member_of_an_archive(home: str) -> None:
    toy = corpus(CorpusFile("toy/packed.txt", f"{home}/all.zip", "data/packed.txt"))
    assert fetch(toy)["toy/packed.txt"].read_bytes() == TEXT
    with pytest.raises(DataError, match=r"all\.zip does not hold data/other\.txt"):
        fetch(corpus(CorpusFile("toy/other.txt", f"{home}/all.zip", "data/other.txt")))


def test_what_is_no_archive(home: str, tmp_path: Path) -> None:
    (tmp_path / "home/all.zip").write_bytes(b"an error page")
    with pytest.raises(DataError, match=r"all\.zip is no zip archive; .* by hand"):
        fetch(corpus(CorpusFile("toy/packed.txt", f"{home}/all.zip", "data/packed.txt")))
    assert not list((tmp_path / "cache/archives").iterdir())


def test_without_a_network_it_says_which_file_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "mine"))
    toy = corpus(CorpusFile("toy/plain.txt", "http://127.0.0.1:9/plain.txt"))
    place = str(tmp_path / "mine/toy/plain.txt")
    with pytest.raises(DataError, match=rf"cannot be reached .*; .* put it at {place}"):
        get_files(toy)


def test_a_missing_page_is_not_taken_for_the_file(home: str) -> None:
    with pytest.raises(DataError, match=r"toy/no\.txt is not there and .* cannot be reached"):
        fetch(corpus(CorpusFile("toy/no.txt", f"{home}/no.txt")))


def test_what_is_not_needed_may_be_absent(home: str) -> None:
    toy = corpus(
        CorpusFile("toy/plain.txt", f"{home}/plain.txt"),
        CorpusFile("toy/no.txt", f"{home}/no.txt", needed=False),
    )
    assert list(fetch(toy)) == ["toy/plain.txt"]


def test_of_alternatives_one_is_enough(home: str) -> None:
    toy = corpus(
        CorpusFile("toy/no.txt", f"{home}/no.txt"),
        CorpusFile("toy/plain.txt", f"{home}/plain.txt"),
        CorpusFile("toy/never-asked.txt", f"{home}/never-asked.txt"),
        alternatives=True,
    )
    assert list(get_files(toy)) == ["toy/plain.txt"]
    with pytest.raises(DataError, match="no file of it can be downloaded"):
        fetch(corpus(CorpusFile("toy/no.txt", f"{home}/no.txt"), alternatives=True))


def test_pins_are_hashes_of_files_that_a_corpus_names() -> None:
    named = {file.path for entry in CORPORA.values() for file in entry.files}
    pins = corpus_module.pins()
    assert set(pins) <= named
    assert all(len(value) == 64 for value in pins.values())


def test_another_version_of_a_pinned_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pin(monkeypatch, toy__plain_txt=hashlib.sha256(TEXT).hexdigest())
    path = tmp_path / "toy/plain.txt"
    path.parent.mkdir()
    path.write_bytes(TEXT)
    assert another_version(path) is None
    path.write_bytes(b"other")
    found = hashlib.sha256(b"other").hexdigest()
    assert another_version(path) == (
        f"{path} has sha256 {found}, the pinned original {hashlib.sha256(TEXT).hexdigest()}"
    )
    assert another_version(tmp_path / "unknown.txt") is None
