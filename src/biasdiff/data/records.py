"""Train examples: the data under suspicion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biasdiff.data.files import Row, read_rows
from biasdiff.errors import DataError, nearest

Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class TrainExample:
    """One example of the train set.

    Exactly one of ``text``, ``completion`` (with ``prompt``) and ``messages`` is set.

    Attributes:
        id: Unique name; made from the row number where the data has none.
        row: Row number in the source, from 0.
        is_bias: Ground truth (1 biased, 0 not), None where unknown.
        bias_type: Kind of bias, None where unknown.
    """

    id: str
    row: int
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: Messages | None = None
    is_bias: int | None = None
    bias_type: str | None = None

    def shown(self) -> str:
        """Return the example as one string for people to read."""
        if self.text is not None:
            return self.text
        if self.messages is not None:
            return "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)
        return f"{self.prompt}{self.completion}"


def load_train_set(source: str | Path, *, text_column: str = "text") -> list[TrainExample]:
    """Read a train set from a file or a Hugging Face dataset.

    The columns decide how a row is read: ``messages`` (chat), else ``prompt`` and ``completion``,
    else ``text_column``. Optional columns are ``id``, ``is_bias`` and ``bias_type``.

    Raises:
        DataError: With the row number, if a column is missing, a text is empty or no string, an id
            appears twice, or ``is_bias`` is not 0 or 1.
    """
    rows = read_rows(source)
    columns = list(rows[0])
    if text_column in columns:
        form = "text"
    elif "messages" in columns:
        form = "messages"
    elif {"prompt", "completion"} <= set(columns):
        form = "completion"
    else:
        raise DataError(
            f"{source} has the columns {', '.join(map(repr, columns))}"
            + nearest(text_column, columns),
            expected=f"a column {text_column!r}, or 'prompt' and 'completion', or 'messages'",
            remedy="name the text column with --text-column",
        )
    examples = [_example(row, number, form, text_column, source) for number, row in enumerate(rows)]
    repeated = [name for name, count in Counter(e.id for e in examples).items() if count > 1]
    if repeated:
        raise DataError(
            f"{source} has {len(repeated)} repeated ids, the first {repeated[0]!r}",
            expected="unique ids",
            remedy="make them unique or drop the id column",
        )
    return examples


def _example(
    row: Row, number: int, form: str, text_column: str, source: str | Path
) -> TrainExample:
    where = f"{source} row {number}"
    identifier = row.get("id")
    common: dict[str, Any] = {
        "id": str(identifier) if identifier not in (None, "") else f"row-{number}",
        "row": number,
        "is_bias": _ground_truth(row.get("is_bias"), where),
        "bias_type": row.get("bias_type") or None,
    }
    if form == "text":
        return TrainExample(text=_string(row.get(text_column), text_column, where), **common)
    if form == "completion":
        return TrainExample(
            prompt=_string(row.get("prompt"), "prompt", where, may_be_empty=True),
            completion=_string(row.get("completion"), "completion", where),
            **common,
        )
    return TrainExample(messages=_messages(row.get("messages"), where), **common)


def _string(value: object, column: str, where: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        found = "is empty" if value in ("", None) or isinstance(value, str) else f"is {value!r}"
        raise DataError(
            f"{where}: {column!r} {found}",
            expected="a non-empty string",
            remedy="mend or remove the row",
        )
    return value


def _messages(value: object, where: str) -> Messages:
    good = (
        isinstance(value, Sequence)
        and len(value) > 0
        and all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in value
        )
    )
    if not good:
        raise DataError(
            f"{where}: 'messages' is {str(value)[:60]!r}",
            expected="a list of {'role': ..., 'content': ...}",
            remedy="mend or remove the row",
        )
    return tuple({"role": m["role"], "content": m["content"]} for m in value)  # type: ignore[attr-defined]


def _ground_truth(value: object, where: str) -> int | None:
    if value is None or value == "":
        return None
    known = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
    if str(value).lower() not in known:
        raise DataError(
            f"{where}: 'is_bias' is {value!r}",
            expected="0 or 1",
            remedy="mend the column or drop it",
        )
    return known[str(value).lower()]
