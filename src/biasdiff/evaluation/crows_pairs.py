"""CrowS-Pairs, from the user's data folder or the cache; it is never shipped."""

from __future__ import annotations

from pathlib import Path

from biasdiff.data.probe import ProbePair
from biasdiff.data.sources import crows_pairs
from biasdiff.data.sources.finding import get_files
from biasdiff.errors import DataError

EXPECTED = {"stereo": 1290, "antistereo": 218}


def crows_pairs_file() -> Path:
    """Return the file, fetching it if it is not at hand.

    Raises:
        DataError: If it can neither be found nor fetched; what to put where is said.
    """
    return get_files(crows_pairs.CORPUS)[crows_pairs.FILE.path]


def load_crows_pairs() -> list[ProbePair]:
    """Read CrowS-Pairs whole.

    Raises:
        DataError: If the file can neither be found nor fetched, or has other row counts than the
            original's 1290 stereo and 218 antistereo.
    """
    path = crows_pairs_file()
    found = crows_pairs.pairs({crows_pairs.FILE.path: path})
    pairs = [pair for pair in found if isinstance(pair, ProbePair)]
    counts = {d: sum(p.stereo_antistereo == d for p in pairs) for d in EXPECTED}
    if counts != EXPECTED:
        raise DataError(
            f"{path} has {counts['stereo']} stereo and {counts['antistereo']} antistereo rows",
            expected="1290 and 218",
            remedy="use the original crows_pairs_anonymized.csv",
        )
    return pairs
