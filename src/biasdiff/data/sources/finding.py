"""Files of a corpus: in the user's data folder, in the cache, or fetched from their home."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from biasdiff.cache import cache_dir
from biasdiff.data.sources.corpus import Corpus, CorpusFile, Record, SetAside, pins
from biasdiff.errors import DataError
from biasdiff.progress import Task, say, task

DATA_DIR = "BIASDIFF_DATA_DIR"
TIMEOUT_SECONDS = 60
Place = Literal["data folder", "cache", "absent"]


@dataclass(frozen=True)
class Contents:
    """A corpus read whole.

    Attributes:
        records: In the files' order.
        set_aside: The rows that could not be read.
    """

    records: list[Record]
    set_aside: list[SetAside]


def data_folders() -> dict[Place, Path]:
    """Return where files are looked for, in this order."""
    named = os.environ.get(DATA_DIR)
    folders: dict[Place, Path] = {"data folder": Path(named)} if named else {}
    return {**folders, "cache": cache_dir() / "data"}


def find(file: CorpusFile) -> tuple[Place, Path | None]:
    """Return where a file lies, or that it lies nowhere."""
    for place, folder in data_folders().items():
        if (folder / file.path).is_file():
            return place, folder / file.path
    return "absent", None


def find_files(corpus: Corpus) -> dict[str, Path] | None:
    """Return the files of a corpus by `CorpusFile.path`, None if a needed one is absent."""
    found = {file.path: path for file in corpus.files if (path := find(file)[1]) is not None}
    if corpus.alternatives:
        return found or None
    whole = all(file.path in found for file in corpus.files if file.needed)
    return found if whole else None


def another_version(path: Path) -> str | None:
    """Say that a file is not the original that was pinned; None if it is, or none was pinned.

    Args:
        path: A file under a data folder or the cache.
    """
    for place, pinned in pins().items():
        if path.as_posix().endswith(f"/{place}"):
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != pinned:
                return f"{path} has sha256 {found}, the pinned original {pinned}"
    return None


def get_files(corpus: Corpus) -> dict[str, Path]:
    """Return the files of a corpus, fetching what is needed and not there.

    Raises:
        DataError: As `fetch`.
    """
    return find_files(corpus) or fetch(corpus)


def iterate(corpus: Corpus) -> Iterator[Record | SetAside]:
    """Yield a corpus one record at a time, fetching its files if need be."""
    yield from corpus.read(get_files(corpus))


def read_corpus(corpus: Corpus) -> Contents:
    """Read a corpus whole, keeping apart and counting what could not be read.

    Raises:
        DataError: If its files can neither be found nor fetched, or hold no record.
    """
    records: list[Record] = []
    set_aside: list[SetAside] = []
    for item in iterate(corpus):
        if isinstance(item, Record):
            records.append(item)
        else:
            set_aside.append(item)
    if not records:
        why = [f"; {row.file} line {row.line}: {row.reason}" for row in set_aside[:1]]
        raise DataError(
            f"{corpus.name} holds no readable row{''.join(why)}",
            expected="the original files",
            remedy="fetch them again",
        )
    if set_aside:
        say(f"  {corpus.name}: {len(set_aside)} rows set aside")
    return Contents(records, set_aside)


def fetch(corpus: Corpus) -> dict[str, Path]:
    """Download the files of a corpus that are not there yet into the cache.

    Every file is checked against its pinned hash; where none is pinned, the hash is written beside
    the file at the first fetch and said.

    Raises:
        DataError: If a needed file cannot be downloaded (what to put where is said) or has another
            hash than the pinned one.
    """
    say(f"{corpus.title}: licence {corpus.licence}")
    files: dict[str, Path] = {}
    for file in corpus.files:
        _, path = find(file)
        if path is None:
            try:
                path = _download(file)
            except DataError:
                if file.needed and not corpus.alternatives:
                    raise
                say(f"  {file.path}: not available, left out")
                continue
        files[file.path] = path
        if corpus.alternatives:
            break
    if not files:
        raise _unreachable(corpus.files[0], "no file of it can be downloaded")
    return files


def _download(file: CorpusFile) -> Path:
    import pooch

    target = cache_dir() / "data" / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.part")
    say(f"  {file.path} from {file.url}")
    with _quiet_pooch():
        try:
            got = Path(
                pooch.retrieve(
                    file.url,
                    None if file.member else file.sha256 and f"sha256:{file.sha256}",
                    fname=Path(file.url).name if file.member else work.name,
                    path=cache_dir() / "archives" if file.member else work.parent,
                    downloader=pooch.HTTPDownloader(
                        progressbar=_Bar(file.path),
                        timeout=TIMEOUT_SECONDS,
                        chunk_size=1 << 16,
                        headers={"User-Agent": "biasdiff"},
                    ),
                )
            )
        except ValueError as error:  # the hash differs; pooch has thrown the file away
            raise _wrong_hash(file, "the downloaded file") from error
        except OSError as error:  # requests' exceptions among them
            raise _unreachable(file, f"{type(error).__name__}") from error
    if file.member:
        _unpack(got, file.member, work)
        if file.sha256 and pooch.file_hash(str(work)) != file.sha256:
            work.unlink()
            raise _wrong_hash(file, f"{file.member} in {file.url}")
    if file.sha256 is None:
        found = pooch.file_hash(str(work))
        target.with_name(f"{target.name}.sha256").write_text(f"{found}  {target.name}\n")
        say(f"  no hash is pinned for {file.path}; recorded at this first fetch: {found}")
    work.rename(target)
    return target


def _unpack(archive: Path, member: str, target: Path) -> None:
    import zipfile

    try:
        with zipfile.ZipFile(archive) as zipped:
            names = [n for n in zipped.namelist() if n == member or n.endswith(f"/{member}")]
            if not names:
                raise DataError(
                    f"{archive.name} does not hold {member}",
                    expected="the original archive",
                    remedy="unpack it by hand into the data folder",
                )
            with zipped.open(names[0]) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DataError(
            f"{archive.name} is no zip archive",
            expected="the original archive",
            remedy="fetch it again, or unpack it by hand into the data folder",
        ) from error


def _unreachable(file: CorpusFile, reason: str) -> DataError:
    place = next(iter(data_folders().values())) / file.path
    inside = f" ({file.member} in the archive)" if file.member else ""
    return DataError(
        f"{file.path} is not there and {file.url} cannot be reached ({reason})",
        expected=f"the file in ${DATA_DIR}, in the cache, or a network",
        remedy=f"download it elsewhere and put it{inside} at {place}",
    )


def _wrong_hash(file: CorpusFile, what: str) -> DataError:
    return DataError(
        f"{what} has another sha256 than the pinned {file.sha256}",
        expected="the original file",
        remedy=f"check {file.url}; a file you trust can be put into ${DATA_DIR}",
    )


class _Bar:
    """What pooch asks of a progress bar, shown by `biasdiff.progress`."""

    total = 0

    def __init__(self, name: str) -> None:
        self._name, self._open = name, ExitStack()
        self._task: Task | None = None

    def update(self, units: int) -> None:
        if self._task is None:
            self._task = self._open.enter_context(task(self._name, self.total))
        self._task.advance(units)

    def reset(self) -> None:
        """Pooch fills the bar once more at the end; ours needs no filling."""
        self._open.close()

    def close(self) -> None:
        self._open.close()


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    import logging

    import pooch

    logger = pooch.get_logger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
