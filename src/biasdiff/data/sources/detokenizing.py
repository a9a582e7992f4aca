"""Running text from text that was split into tokens."""

from __future__ import annotations

import functools
import re
from typing import Any

import ftfy

_HYPHEN = re.compile(r"(?<=\w) - (?=\w)")
_CONTRACTION = re.compile(r" n't\b")


@functools.cache
def _moses() -> Any:
    from sacremoses import MosesDetokenizer

    return MosesDetokenizer(lang="en")


def detokenize(text: str) -> str:
    """Join tokens as English writes them, and mend text that was decoded wrongly."""
    mended = _CONTRACTION.sub("n't", _HYPHEN.sub("-", ftfy.fix_text(text)))
    return str(_moses().detokenize(mended.split()))
