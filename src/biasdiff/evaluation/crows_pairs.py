"""CrowS-Pairs, from a file the user has; it is never shipped."""

from __future__ import annotations

import os
from pathlib import Path

from biasdiff.data.probe import ProbePair, load_probe_pairs
from biasdiff.errors import DataError

VARIABLE = "BIASDIFF_DATA_DIR"
FILE = "crows_pairs/crows_pairs_anonymized.csv"
EXPECTED = {"stereo": 1290, "antistereo": 218}


def load_crows_pairs() -> list[ProbePair]:
    """Read CrowS-Pairs from ``$BIASDIFF_DATA_DIR/crows_pairs/crows_pairs_anonymized.csv``.

    Raises:
        DataError: If the variable or the file is missing, or the file has other row counts than the
            original's 1290 stereo and 218 antistereo.
    """
    folder = os.environ.get(VARIABLE)
    path = Path(folder or ".") / FILE
    if folder is None or not path.is_file():
        raise DataError(
            f"{VARIABLE} is not set" if folder is None else f"{path} does not exist",
            expected=f"a folder that holds {FILE}",
            remedy=f"download the file from the CrowS-Pairs repository and set {VARIABLE}",
        )
    pairs = load_probe_pairs(path)
    found = {d: sum(p.stereo_antistereo == d for p in pairs) for d in EXPECTED}
    if found != EXPECTED:
        raise DataError(
            f"{path} has {found['stereo']} stereo and {found['antistereo']} antistereo rows",
            expected="1290 and 218",
            remedy="use the original crows_pairs_anonymized.csv",
        )
    return pairs
