"""Rows of JSONL, CSV and Parquet files and Hugging Face datasets, with their row numbers."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from biasdiff.errors import DataError

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
Row = dict[str, Any]


def read_rows(source: str | Path) -> list[Row]:
    """Read all rows of a JSONL, CSV or Parquet file, or of a Hugging Face dataset's train split.

    Args:
        source: A path, or a dataset id for a name that is no file and has no known ending.

    Raises:
        DataError: If the file is missing, unreadable, empty, not UTF-8, or a row cannot be parsed.
    """
    path = Path(source)
    if not path.exists():
        if path.suffix.lower() not in FORMATS:
            return _read_hub_dataset(str(source))
        raise DataError(
            f"{path} does not exist",
            expected=f"a file ending in {', '.join(FORMATS)}",
            remedy="check the path",
        )
    if path.is_dir():
        raise DataError(
            f"{path} is a folder", expected="a data file", remedy="name the file inside it"
        )
    readers = {".jsonl": _read_jsonl, ".json": _read_jsonl, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower(), _read_parquet)
    if reader is _read_parquet and path.suffix.lower() != ".parquet":
        raise DataError(
            f"{path} ends in {path.suffix!r}",
            expected=f"one of {', '.join(FORMATS)}",
            remedy="convert or rename the file",
        )
    try:
        rows = list(reader(path))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not valid UTF-8{_first_bad_line(path)}",
            expected="UTF-8 text",
            remedy="re-save the file as UTF-8",
        ) from error
    except PermissionError as error:
        raise DataError(
            f"{path} cannot be read", expected="read permission", remedy="change its permissions"
        ) from error
    if not rows:
        raise DataError(
            f"{path} has no rows", expected="at least one row", remedy="check how it was written"
        )
    return rows


def _first_bad_line(path: Path) -> str:
    """Return ``" in line n"``; a decoder's own offset counts from the start of its buffer."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f" in line {number}"
    return ""


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path} line {number} is not JSON ({error.msg})",
                    expected="one JSON object a line",
                    remedy="mend or remove the line",
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{path} line {number} holds a {type(row).__name__}",
                    expected="one JSON object a line",
                    remedy="mend or remove the line",
                )
            yield row


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{path} line {reader.line_num} has more fields than the header",
                        expected=f"{len(reader.fieldnames or [])} fields",
                        remedy="quote texts that contain commas",
                    )
                yield row
        except csv.Error as error:
            raise DataError(
                f"{path} line {reader.reader.line_num} is malformed ({error})",
                expected="comma-separated values with a header",
                remedy="mend the line",
            ) from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(path).to_pylist()
    except PermissionError:
        raise
    except (pyarrow.ArrowException, OSError) as error:  # OSError for a broken footer
        raise DataError(
            f"{path} is not a Parquet file ({(str(error).splitlines() or [''])[0]})",
            expected="a Parquet file",
            remedy="check how it was written",
        ) from error


def _read_hub_dataset(name: str) -> list[Row]:
    import datasets

    try:
        return list(datasets.load_dataset(name, split="train"))
    except Exception as error:  # the hub client raises many unrelated types
        raise DataError(
            f"{name!r} is neither a file nor a dataset that could be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            expected=f"a file ending in {', '.join(FORMATS)} or a Hugging Face dataset id",
            remedy="check the name, or your connection for a dataset id",
        ) from error


def write_rows(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows as JSONL, CSV or Parquet, by the file's ending; the file appears when complete.

    Raises:
        DataError: If the ending is none of these.
    """
    writers: dict[str, Callable[[pandas.DataFrame, Path], object]] = {
        ".jsonl": lambda table, file: table.to_json(
            file, orient="records", lines=True, force_ascii=False
        ),
        ".csv": lambda table, file: table.to_csv(file, index=False, lineterminator="\n"),
        ".parquet": lambda table, file: table.to_parquet(file, index=False),
    }
    write = writers.get(path.suffix.lower())
    if write is None:
        raise DataError(
            f"{path} ends in {path.suffix!r}",
            expected=f"one of {', '.join(writers)}",
            remedy="name another file",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.stem}.part{path.suffix}")
    write(pandas.DataFrame(list(rows)), work)
    work.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is on the disk, and whole, once it is seen under its name."""
    work = path.with_name(path.name + ".tmp")
    with work.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    work.rename(path)
