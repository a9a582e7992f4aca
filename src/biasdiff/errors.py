"""Errors that every layer raises: what was found, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class BiasdiffError(Exception):
    """Something the user can put right; the command line prints it on one line and exits with 2.

    Args:
        found: What was seen, with the file, row or key it was seen in.
        expected: What should have been there.
        remedy: What the user can do about it.
    """

    def __init__(self, found: str, *, expected: str, remedy: str) -> None:
        self.found, self.expected, self.remedy = found, expected, remedy
        super().__init__(f"{found}; expected {expected}; {remedy}.")


class ConfigError(BiasdiffError):
    """A setting is unknown or out of range."""


class DataError(BiasdiffError):
    """A data file is missing, malformed or unusable for what was asked."""


class ModelError(BiasdiffError):
    """A model, adapter or tokenizer cannot be loaded or is of the wrong kind."""


class NonFiniteError(BiasdiffError):
    """A loss, gradient or log-probability is NaN or infinite."""


class ArtifactError(BiasdiffError):
    """A run directory or stage folder is stale, incomplete or not writable."""


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the candidate nearest to ``name``, or nothing."""
    match = get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""
