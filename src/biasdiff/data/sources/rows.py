"""Lines, table rows and JSON objects of a corpus file, with their line numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from biasdiff.data.sources.corpus import SetAside
from biasdiff.errors import DataError


def text_lines(path: Path) -> Iterator[tuple[int, str | SetAside]]:
    """Yield each line without its end, setting aside those that are not UTF-8."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield number, SetAside(path.name, number, f"not UTF-8 ({error.reason})")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | SetAside]]:
    """Yield each line's JSON object."""
    for number, line in text_lines(path):
        if isinstance(line, SetAside):
            yield number, line
        elif line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                yield number, SetAside(path.name, number, f"not JSON ({error.msg})")
                continue
            if isinstance(value, dict):
                yield number, value
            else:
                yield number, SetAside(path.name, number, f"a {type(value).__name__}, no object")


def json_document(path: Path) -> Any:
    """Read a file that is one JSON document.

    Raises:
        DataError: If it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not JSON ({error})",
            expected="the original file",
            remedy="fetch it again",
        ) from error


def table_rows(
    path: Path,
    needed: Sequence[str],
    *,
    delimiter: str = ",",
    quoted: bool = True,
    header: Sequence[str] | None = None,
) -> Iterator[tuple[int, dict[str, str] | SetAside]]:
    """Yield each row of a CSV or TSV file as a dict.

    Args:
        path: The file.
        needed: Columns that must be there and not empty; a row without one is set aside.
        delimiter: Between fields.
        quoted: Whether quotation marks enclose fields.
        header: Column names of a file without a header line.

    Raises:
        DataError: If a needed column is not in the header.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as lines:
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
        columns = list(header) if header is not None else next(reader, [])
        missing = [name for name in needed if name not in columns]
        if missing:
            raise DataError(
                f"{path} has no column {missing[0]!r} but {', '.join(map(repr, columns))}",
                expected="the original file",
                remedy="fetch it again",
            )
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, SetAside(path.name, line, str(error))
                continue
            if not values:
                continue
            if len(values) != len(columns):
                reason = f"{len(values)} fields instead of {len(columns)}"
                yield line, SetAside(path.name, line, reason)
                continue
            row = dict(zip(columns, values, strict=True))
            empty = [name for name in needed if not row[name].strip()]
            broken = [name for name in needed if "\ufffd" in row[name]]
            if empty:
                yield line, SetAside(path.name, line, f"{empty[0]!r} is empty")
            elif broken:
                yield line, SetAside(path.name, line, f"{broken[0]!r} is not UTF-8")
            else:
                yield line, row
