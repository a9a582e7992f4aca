"""Probe pairs: a stereotype sentence and its anti-stereotype twin."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from biasdiff.data.files import read_rows
from biasdiff.errors import DataError, nearest

Direction = Literal["stereo", "antistereo"]
COLUMNS = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")


@dataclass(frozen=True)
class ProbePair:
    """Two sentences that differ in the group they speak of, in CrowS-Pairs columns.

    Attributes:
        sent_more: The more stereotypical sentence, in both directions.
        sent_less: Its twin; empty where there is none.
        stereo_antistereo: Whether the pair states a stereotype or turns one round.
        bias_type: Kind of bias.
        row: Row number in the source, from 0.
        extra: Further columns, ``stereotype_id`` among them, kept as they came.
    """

    sent_more: str
    sent_less: str
    stereo_antistereo: Direction
    bias_type: str
    row: int
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def stereotype_id(self) -> str:
        """Name of the stereotype, empty where the data gives none."""
        return self.extra.get("stereotype_id", "")


def load_probe_pairs(source: str | Path) -> list[ProbePair]:
    """Read probe pairs from a CSV (or any file `read_rows` knows) in CrowS-Pairs columns.

    Raises:
        DataError: If a column is missing, ``sent_more`` or ``bias_type`` is empty in a row, or
            ``stereo_antistereo`` has another value than these two.
    """
    rows = read_rows(source)
    columns = list(rows[0])
    for name in COLUMNS:
        if name not in columns:
            raise DataError(
                f"{source} has no column {name!r}{nearest(name, columns)}",
                expected=f"the columns {', '.join(COLUMNS)}",
                remedy="rename the column",
            )
    pairs = []
    for number, row in enumerate(rows):
        for name in ("sent_more", "bias_type"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise DataError(
                    f"{source} row {number}: {name!r} is empty",
                    expected="a non-empty string",
                    remedy="mend or remove the row",
                )
        twin = row.get("sent_less") or ""
        if not isinstance(twin, str):
            raise DataError(
                f"{source} row {number}: 'sent_less' is {twin!r}",
                expected="a string, or nothing for a sentence without a twin",
                remedy="mend the row",
            )
        if row.get("stereo_antistereo") not in ("stereo", "antistereo"):
            raise DataError(
                f"{source} row {number}: 'stereo_antistereo' is {row.get('stereo_antistereo')!r}",
                expected="'stereo' or 'antistereo'",
                remedy="mend the row",
            )
        pairs.append(
            ProbePair(
                sent_more=row["sent_more"],
                sent_less=twin,
                stereo_antistereo=row["stereo_antistereo"],
                bias_type=row["bias_type"],
                row=number,
                extra={
                    k: "" if v is None else str(v) for k, v in row.items() if k and k not in COLUMNS
                },
            )
        )
    return pairs


def require_twins(pairs: Sequence[ProbePair], *, purpose: str) -> None:
    """Refuse pairs without a twin, naming the first such row.

    Raises:
        DataError: If any ``sent_less`` is empty.
    """
    lonely = [pair.row for pair in pairs if not pair.sent_less.strip()]
    if lonely:
        raise DataError(
            f"{len(lonely)} of {len(pairs)} probe rows have no 'sent_less', the first row "
            f"{lonely[0]}",
            expected=f"a twin for every sentence, which {purpose} compares",
            remedy="fill the column or use the estimator 'less', which needs no twins",
        )


def save_probe_pairs(pairs: Iterable[ProbePair], path: Path) -> None:
    """Write pairs as CSV in CrowS-Pairs columns, further columns after them."""
    pairs = list(pairs)
    extras = list(dict.fromkeys(name for pair in pairs for name in pair.extra))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *extras])
        for pair in pairs:
            fixed = [getattr(pair, name) for name in COLUMNS]
            writer.writerow(fixed + [pair.extra.get(name, "") for name in extras])
