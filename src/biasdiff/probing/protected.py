"""Sentences that new pairs may not repeat: the shipped ones, those of benchmarks, the user's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from biasdiff.data.files import read_rows
from biasdiff.data.probe import load_probe_pairs
from biasdiff.data.records import load_train_set
from biasdiff.data.shipped_sets import shipped_pairs
from biasdiff.data.sources.corpus import Record
from biasdiff.data.sources.finding import find_files
from biasdiff.data.sources.registry import CORPORA

BENCHMARKS = ("crows_pairs", "stereoset")


def benchmark_sentences() -> tuple[dict[str, list[str]], list[str]]:
    """Return the sentences of the benchmarks at hand, and the names of those that are not."""
    found: dict[str, list[str]] = {}
    absent = []
    for name in BENCHMARKS:
        files = find_files(CORPORA[name])
        if files is None:
            absent.append(name)
            continue
        records = (item for item in CORPORA[name].read(files) if isinstance(item, Record))
        found[name] = [r.text for r in records if r.extra.get("label") != "unrelated"]
    return found, absent


def sentences_to_avoid(files: Iterable[Path]) -> list[str]:
    """Return the shipped sentences, those of benchmarks at hand, and those of the user's files.

    Args:
        files: Probe sets or train sets.

    Raises:
        DataError: If a file cannot be read.
    """
    sentences = [text for pair in shipped_pairs() for text in (pair.sent_more, pair.sent_less)]
    for texts in benchmark_sentences()[0].values():
        sentences += texts
    for file in files:
        if "sent_more" in read_rows(file)[0]:
            for pair in load_probe_pairs(file):
                sentences += [text for text in (pair.sent_more, pair.sent_less) if text]
        else:
            sentences += [example.shown() for example in load_train_set(file)]
    return sentences
