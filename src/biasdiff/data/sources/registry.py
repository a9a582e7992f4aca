"""All corpora by name; a new one is a new file and a new line here."""

from __future__ import annotations

from biasdiff.data.sources import (
    ag_news,
    bbq,
    bug,
    crows_pairs,
    gap,
    hatespeech,
    realtoxicityprompts,
    seat,
    stereoset,
    trex,
    wikitext2,
    winobias,
    winogender,
)
from biasdiff.data.sources.corpus import Corpus
from biasdiff.errors import DataError, nearest

_MODULES = (
    crows_pairs,
    stereoset,
    seat,
    winobias,
    winogender,
    bbq,
    bug,
    gap,
    hatespeech,
    realtoxicityprompts,
    ag_news,
    trex,
    wikitext2,
)
CORPORA: dict[str, Corpus] = {module.CORPUS.name: module.CORPUS for module in _MODULES}


def corpus_named(name: str) -> Corpus:
    """Return a corpus.

    Raises:
        DataError: If there is none of that name; the nearest is named.
    """
    if name not in CORPORA:
        raise DataError(
            f"no corpus is called {name!r}{nearest(name, CORPORA)}",
            expected=f"one of {', '.join(CORPORA)}",
            remedy="see 'biasdiff data list'",
        )
    return CORPORA[name]
