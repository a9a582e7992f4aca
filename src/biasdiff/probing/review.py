"""The manual selection of the paper: every pair read, and accepted, edited or rejected by key.

A page on this machine only. Each decision is on disk before the next pair is shown, so a restart
goes on where the reader stopped.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from biasdiff.data.probe import ProbePair, save_probe_pairs
from biasdiff.data.twins import bare
from biasdiff.errors import ArtifactError, DataError
from biasdiff.probing.lexicon import Lexicon
from biasdiff.probing.validation import BIAS_TYPES, PAIR_RULES

QUESTIONS = (
    "edit is not minimal",
    "ungrammatical or odd",
    "no known stereotype",
    "wrong type",
    "too harsh",
    "twin as stereotypical",
)
"""Reasons to reject, chosen by number key."""
PAGE = Path(__file__).with_name("review.html")
LARGEST_BODY = 100_000
Runs = list[tuple[str, bool]]
"""Words of a sentence, run by run, and whether the run differs from the other side."""


@dataclass(frozen=True)
class Decision:
    """What a reader decided on one pair.

    Attributes:
        row: Row of the pair.
        verdict: accept, edit, reject, or undo of an earlier decision.
        reason: Why it was rejected, one of `QUESTIONS`, or nothing.
        sent_more: After an edit; likewise the next two.
        sent_less: See above.
        bias_type: See above.
        seconds: Time the pair was on the screen.
    """

    row: int
    verdict: Literal["accept", "edit", "reject", "undo"]
    reason: str = ""
    sent_more: str = ""
    sent_less: str = ""
    bias_type: str = ""
    seconds: float = 0.0


def decision_from(body: bytes) -> Decision:
    """Read a decision as the page sends it.

    Raises:
        DataError: If it is not JSON, or a field is missing or of the wrong kind.
    """
    try:
        return TypeAdapter(Decision).validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{name}: " for name in first["loc"])
        raise DataError(
            f"the decision cannot be read ({where}{first['msg']})",
            expected="a JSON object with row and verdict",
            remedy="reload the page",
        ) from error


class Review:
    """Decisions on a probe set, kept in ``OUT.review.jsonl``; accepted pairs in ``OUT``.

    Args:
        pairs: To be read.
        out: CSV of the accepted and edited pairs, written after every decision.
        lexicon: For the hints of the validator's rules.

    Raises:
        ArtifactError: If the decisions that are there belong to other pairs.
    """

    def __init__(self, pairs: Sequence[ProbePair], out: Path, lexicon: Lexicon) -> None:
        self.pairs, self.out, self._lexicon = list(pairs), out, lexicon
        self.log = out.with_name(f"{out.stem}.review.jsonl")
        self._lock = Lock()
        self.decisions: dict[int, Decision] = {}
        out.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            self._recover()
        elif out.exists():
            raise ArtifactError(
                f"{out} exists and is no review",
                expected="a new file, or one begun by this command",
                remedy="name another --out",
            )

    def _recover(self) -> None:
        for line in self.log.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the line that a kill or a full disk cut short
            row, read = record["row"], record.pop("read")
            if row >= len(self.pairs) or read != self._read(row):
                raise ArtifactError(
                    f"{self.log} holds decisions on other pairs (row {row})",
                    expected="decisions on this file",
                    remedy="name another --out",
                )
            self._apply(Decision(**record))
        self._save()

    def _read(self, row: int) -> list[str]:
        """Return what a decision is about, which must not have changed when it is recovered."""
        pair = self.pairs[row]
        return [pair.sent_more, pair.sent_less, pair.bias_type]

    def decide(self, decision: Decision) -> None:
        """Keep a decision: on disk first, then in mind.

        Raises:
            DataError: If the row does not exist, the reason is none of `QUESTIONS`, or an edit
                leaves a side empty or names an unknown type.
        """
        if not 0 <= decision.row < len(self.pairs):
            raise DataError(
                f"row {decision.row} does not exist",
                expected=f"0 to {len(self.pairs) - 1}",
                remedy="reload the page",
            )
        if decision.reason and decision.reason not in QUESTIONS:
            raise DataError(
                f"row {decision.row}: the reason is {decision.reason!r}",
                expected=f"one of {', '.join(QUESTIONS)}",
                remedy="reload the page",
            )
        if decision.verdict == "edit":
            decision = self._edited(decision)
        with self._lock:
            self._append(asdict(decision) | {"read": self._read(decision.row)})
            self._apply(decision)
            self._save()

    def _edited(self, decision: Decision) -> Decision:
        more, less = (" ".join(side.split()) for side in (decision.sent_more, decision.sent_less))
        if not (more and less):
            raise DataError(
                f"row {decision.row}: an edited side is empty",
                expected="two sentences",
                remedy="write both, or reject the pair",
            )
        if decision.bias_type not in ("", self.pairs[decision.row].bias_type, *BIAS_TYPES):
            raise DataError(
                f"row {decision.row}: the type is {decision.bias_type!r}",
                expected=f"one of {', '.join(BIAS_TYPES)}",
                remedy="choose a type of the list",
            )
        return replace(decision, sent_more=more, sent_less=less)

    def _append(self, record: dict[str, Any]) -> None:
        with self.log.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a line cut short must not take this one with it
                    file.write(b"\n")
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _apply(self, decision: Decision) -> None:
        self.decisions.pop(decision.row, None)  # the latest stands last
        if decision.verdict != "undo":
            self.decisions[decision.row] = decision

    def _save(self) -> None:
        work = self.out.with_name(f".{self.out.name}.part")
        save_probe_pairs(self.accepted(), work)
        work.replace(self.out)

    def accepted(self) -> list[ProbePair]:
        """Return the pairs accepted so far, edits applied, in the order of the rows."""
        rows = sorted(self.decisions)
        return [self._current(row) for row in rows if self.decisions[row].verdict != "reject"]

    def _current(self, row: int) -> ProbePair:
        """Return a pair with its edit, if it has one."""
        pair, decision = self.pairs[row], self.decisions.get(row)
        if decision is None or decision.verdict != "edit":
            return pair
        return replace(
            pair,
            sent_more=decision.sent_more,
            sent_less=decision.sent_less,
            bias_type=decision.bias_type or pair.bias_type,
        )

    def state(self, *, after: int = -1) -> dict[str, Any]:
        """Return how far the review is.

        Args:
            after: Row whose next undecided one is wanted; behind the last it starts anew.
        """
        verdicts = [decision.verdict for decision in self.decisions.values()]
        rows = (*range(after + 1, len(self.pairs)), *range(after + 1))
        return {
            "total": len(self.pairs),
            "next": next((row for row in rows if row not in self.decisions), None),
            "last": next(reversed(self.decisions), None),
            "accepted": verdicts.count("accept"),
            "edited": verdicts.count("edit"),
            "rejected": verdicts.count("reject"),
            "questions": QUESTIONS,
            "types": BIAS_TYPES,
            "out": str(self.out),
        }

    def shown(self, row: int) -> dict[str, Any]:
        """Return a pair as the page shows it, edited if it was, with what the rules say about it.

        The sides come as runs of words, each with whether the other side lacks it.
        """
        pair, decision = self._current(row), self.decisions.get(row)
        more, less = _runs(pair)
        hints = [
            f"{rule}: {reason}"
            for rule, check in PAIR_RULES.items()
            for reason in check(pair, self._lexicon)
        ]
        return {
            "row": row,
            "more": more,
            "less": less,
            "direction": pair.stereo_antistereo,
            "bias_type": pair.bias_type,
            "stereotype": pair.stereotype_id,
            "hints": hints,
            "decision": asdict(decision) if decision else None,
        }


def _runs(pair: ProbePair) -> tuple[Runs, Runs]:
    left, right = pair.sent_more.split(), pair.sent_less.split()
    if not right:
        return [(" ".join(left), False)], []
    more: Runs = []
    less: Runs = []
    matcher = SequenceMatcher(None, [*map(bare, left)], [*map(bare, right)], autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        for runs, words in ((more, left[start:end]), (less, right[other_start:other_end])):
            if words:
                runs.append((" ".join(words), kind != "equal"))
    return more, less


def review_server(review: Review, *, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """Return a server for the review, on this machine only, and the address to open.

    The address holds a secret that no other page knows; requests without it are refused.

    Args:
        review: The review.
        port: To listen on; 0 for any that is free.

    Raises:
        ArtifactError: If the port is taken.
    """
    secret = secrets.token_urlsafe(12)
    handler = type("Handler", (_Handler,), {"review": review, "secret": secret})
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise ArtifactError(
            f"port {port} cannot be used ({error.strerror})",
            expected="a free port",
            remedy="give another --port, or none",
        ) from error
    return server, f"http://127.0.0.1:{server.server_address[1]}/{secret}/"


class _Handler(BaseHTTPRequestHandler):
    review: Review
    secret: str

    def do_GET(self) -> None:
        path = self._inner_path()
        if path is None:
            return
        pair = re.fullmatch("pair/([0-9]{1,9})", path)
        if path == "":
            self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif path == "state":
            self._send_json(self.review.state())
        elif pair and int(pair[1]) < len(self.review.pairs):
            self._send_json(self.review.shown(int(pair[1])))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        path, length = self._inner_path(), self.headers.get("content-length", "")
        if path is None:
            return
        if path != "decide":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif not re.fullmatch("[0-9]{1,9}", length):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the request does not tell its length")
        elif int(length) > LARGEST_BODY:
            self.rfile.read(min(int(length), 10 * LARGEST_BODY))  # or the answer would not arrive
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"not saved: {length} bytes, more than {LARGEST_BODY}; shorten the sentences",
            )
        else:
            self._decide(self.rfile.read(int(length)))

    def _decide(self, body: bytes) -> None:
        try:
            decision = decision_from(body)
            self.review.decide(decision)
        except DataError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"not saved: {error}")
        except OSError as error:  # a full disk: the page must say so
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, f"not saved: {error}")
        else:
            self._send_json(self.review.state(after=decision.row))

    def _inner_path(self) -> str | None:
        """Return what follows the secret; None (and a refusal sent) without it."""
        prefix = f"/{self.secret}/"
        if not self.path.startswith(prefix):
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that the command printed")
            return None
        return self.path.removeprefix(prefix)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._send_json({"error": message}, status)

    def _send_json(self, value: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = json.dumps(value, ensure_ascii=False).encode()
        self._send(body, "application/json; charset=utf-8", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet."""
