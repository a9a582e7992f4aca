"""Rows of a mixture, and the pools they are drawn from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from biasdiff.data.draws import shipped_draw
from biasdiff.data.near_duplicates import normalised
from biasdiff.data.probe import ProbePair
from biasdiff.data.records import load_train_set
from biasdiff.data.shipped_sets import shipped_facts
from biasdiff.data.sources.finding import read_corpus
from biasdiff.data.sources.registry import CORPORA
from biasdiff.data.stratification import equal_quotas, grouped, proportional_quotas
from biasdiff.errors import DataError, nearest

PROBING_SET, FACTS = "probing_set", "facts"
SHIPPED_LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class MixtureRow:
    """One train example of a mixture.

    Attributes:
        id: Unique in the mixture; begins with the source.
        text: The text.
        is_bias: Ground truth.
        bias_type: Kind of bias, None where unknown.
        source: Corpus, ``probing_set``, ``facts`` or the name of a file.
        group: What must stay together when the mixture is divided.
        stereotype_id: Name of the stereotype, empty where the source gives none.
    """

    id: str
    text: str
    is_bias: int
    bias_type: str | None
    source: str
    group: str
    stereotype_id: str = ""


@dataclass(frozen=True)
class Pool:
    """All rows a source has to offer.

    Attributes:
        rows: Labelled, no text twice, none that turns a stereotype round.
        licence: Of the source.
        non_commercial: Whether the licence forbids commercial use.
        set_aside: Rows that could not be read.
        repeated: Rows left out because an earlier one says the same.
    """

    rows: list[MixtureRow]
    licence: str
    non_commercial: bool = False
    set_aside: int = 0
    repeated: int = 0


def pool(source: str) -> Pool:
    """Return what a source offers.

    Args:
        source: A corpus by name, ``probing_set`` (stereotype sentences of the rest draw),
            ``facts`` (the shipped ones), or the path of a train set with ``is_bias``.

    Raises:
        DataError: If it is none of these, or cannot be read.
    """
    if source in CORPORA:
        return _corpus_pool(source)
    if source == PROBING_SET:
        stereotypes = [p for p in shipped_draw("rest") if p.stereo_antistereo == "stereo"]
        return _without_repeats(
            [pair_row(p, p.sent_more, 1) for p in stereotypes], licence=SHIPPED_LICENCE
        )
    if source == FACTS:
        rows = [
            MixtureRow(f"{FACTS}:{f.id}", f.text, 0, None, FACTS, f.subject)
            for f in shipped_facts()
        ]
        return _without_repeats(rows, licence=SHIPPED_LICENCE)
    if Path(source).exists():
        return _file_pool(source)
    names = (*CORPORA, PROBING_SET, FACTS)
    raise DataError(
        f"{source!r} is neither a corpus nor a file{nearest(source, names)}",
        expected=f"one of {', '.join(names)}, or a file",
        remedy="mend the name",
    )


def source_name(source: str) -> str:
    """Return what rows of a source carry as `MixtureRow.source`: a file's name without folders."""
    return Path(source).name if source not in CORPORA and Path(source).exists() else source


def pair_row(pair: ProbePair, text: str, is_bias: int) -> MixtureRow:
    """Return one side of a shipped pair as a row."""
    side = "more" if text == pair.sent_more else "less"
    return MixtureRow(
        id=f"{PROBING_SET}:{pair.extra['id']}-{side}",
        text=text,
        is_bias=is_bias,
        bias_type=pair.bias_type,
        source=PROBING_SET,
        group=pair.stereotype_id,
        stereotype_id=pair.stereotype_id,
    )


def _corpus_pool(name: str) -> Pool:
    corpus = CORPORA[name]
    contents = read_corpus(corpus)
    rows = [
        MixtureRow(
            id=f"{name}:{record.id}",
            text=record.text,
            is_bias=record.is_bias,
            bias_type=record.bias_type,
            source=name,
            group=f"{name}:{record.group}",
        )
        for record in contents.records
        if record.is_bias is not None and record.direction != "antistereo"
    ]
    return _without_repeats(
        rows,
        licence=corpus.licence,
        non_commercial=corpus.non_commercial,
        set_aside=len(contents.set_aside),
    )


def _file_pool(source: str) -> Pool:
    name = source_name(source)
    examples = load_train_set(source)
    unlabelled = sum(e.is_bias is None for e in examples)
    if unlabelled:
        raise DataError(
            f"{source}: {unlabelled} of {len(examples)} rows have no 'is_bias'",
            expected="0 or 1 in every row of a file that a mixture draws from",
            remedy="add the column",
        )
    rows = [
        MixtureRow(f"{name}:{e.id}", e.shown(), e.is_bias or 0, e.bias_type, name, f"{name}:{e.id}")
        for e in examples
    ]
    return _without_repeats(rows, licence="the user's own")


def _without_repeats(rows: Sequence[MixtureRow], *, licence: str, **counts: int) -> Pool:
    first: dict[str, MixtureRow] = {}
    for row in rows:
        first.setdefault(normalised(row.text) or row.text, row)
    kept = list(first.values())
    return Pool(kept, licence, repeated=len(rows) - len(kept), **counts)  # type: ignore[arg-type]


def sample(
    rows: Sequence[MixtureRow], count: int, *, seed: int, equal_types: bool = False
) -> list[MixtureRow]:
    """Draw rows, stratified by bias type.

    Args:
        rows: To draw from.
        count: How many; all of them if there are fewer.
        seed: Of the draw.
        equal_types: The same number of every type, as far as it has them; otherwise each type
            keeps the share it has in ``rows``.
    """
    draw = random.Random(seed)
    by_type = grouped(rows, lambda row: row.bias_type or "")
    waiting = {name: list(by_type[name]) for name in sorted(by_type)}
    for members in waiting.values():
        draw.shuffle(members)
    sizes = {name: len(members) for name, members in waiting.items()}
    quotas = (equal_quotas if equal_types else proportional_quotas)(sizes, count)
    return [row for name, quota in quotas.items() for row in waiting[name][:quota]]


def with_group(row: MixtureRow, group: str) -> MixtureRow:
    """Return the row with another group."""
    return replace(row, group=group)
