"""A public corpus: where its files lie, under which licence, and how they are read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

PINS = Path(__file__).with_name("SHA256SUMS")
"""Hashes of the original files, in the format of ``sha256sum --check``."""


@dataclass(frozen=True)
class Record:
    """One text of a corpus.

    Attributes:
        text: The text as a model would read it.
        id: Unique within the corpus.
        is_bias: 1 biased, 0 not, None where the corpus does not tell.
        bias_type: Kind of bias, None where unknown or not applicable.
        group: What must stay together when the corpus is divided: the two sides of a pair, all
            sentences of one fact. The id where nothing else shares it.
        direction: ``antistereo`` for a text that turns a stereotype round; never in a mixture.
        extra: Further fields, as the corpus gives them.
    """

    text: str
    id: str
    is_bias: int | None = None
    bias_type: str | None = None
    group: str = ""
    direction: Literal["stereo", "antistereo"] | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SetAside:
    """A row that could not be read.

    Attributes:
        file: Name of the file.
        line: Line number in it, from 1 (for a JSON document the item's number).
        reason: What is wrong with it.
    """

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus.

    Attributes:
        path: Its place under a data folder, ``crows_pairs/crows_pairs_anonymized.csv``.
        url: Its canonical home.
        member: Its name inside the archive that ``url`` leads to, if it is one.
        needed: Whether the corpus is incomplete without it.
    """

    path: str
    url: str
    member: str | None = None
    needed: bool = True

    @property
    def sha256(self) -> str | None:
        """The pinned hash; None where no original was at hand to pin.

        The hash of such a file is recorded at the first fetch.
        """
        return pins().get(self.path)


@functools.cache
def pins() -> dict[str, str]:
    """Return the hash of every pinned file by its place under a data folder."""
    lines = PINS.read_text(encoding="utf-8").splitlines()
    return {path: sha256 for sha256, path in (line.split(maxsplit=1) for line in lines)}


Reader = Callable[[Mapping[str, Path]], Iterator[Record | SetAside]]
"""Reads the files that were found, by their `CorpusFile.path`."""


@dataclass(frozen=True)
class Corpus:
    """What is known about a corpus before it is read.

    Attributes:
        name: On the command line.
        title: As its authors call it.
        licence: As its authors give it.
        non_commercial: Whether the licence forbids commercial use.
        home: Where it is published.
        biased: What counts as biased, and what as not.
        files: In reading order.
        read: Yields its records and what had to be set aside, one at a time.
        alternatives: Whether any one of the files is enough.
    """

    name: str
    title: str
    licence: str
    non_commercial: bool
    home: str
    biased: str
    files: tuple[CorpusFile, ...]
    read: Reader
    alternatives: bool = False
