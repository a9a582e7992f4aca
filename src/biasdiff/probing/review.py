"""The manual selection of the paper: every pair read, and accepted, edited or rejected by key.

A page on this machine only. Each decision is on disk before the next pair is shown, so a restart
goes on where the reader stopped.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from biasdiff.data.probe import ProbePair, save_probe_pairs
from biasdiff.data.twins import difference
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
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut short
            row = record["row"]
            if row >= len(self.pairs) or record.pop("read") != self.pairs[row].sent_more:
                raise ArtifactError(
                    f"{self.log} holds decisions on other pairs (row {row})",
                    expected="decisions on this file",
                    remedy="name another --out",
                )
            self._apply(Decision(**record))
        self._save()

    def decide(self, decision: Decision) -> None:
        """Keep a decision: on disk first, then in mind.

        Raises:
            DataError: If the row does not exist or an edit leaves a side empty.
        """
        if not 0 <= decision.row < len(self.pairs):
            raise DataError(
                f"row {decision.row} does not exist",
                expected=f"0 to {len(self.pairs) - 1}",
                remedy="reload the page",
            )
        if decision.verdict == "edit" and not (decision.sent_more and decision.sent_less):
            raise DataError(
                f"row {decision.row}: an edited side is empty",
                expected="two sentences",
                remedy="write both, or reject the pair",
            )
        with self._lock:
            read = self.pairs[decision.row].sent_more
            with self.log.open("a", encoding="utf-8") as file:
                record = asdict(decision) | {"read": read}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._apply(decision)
            self._save()

    def _apply(self, decision: Decision) -> None:
        if decision.verdict == "undo":
            self.decisions.pop(decision.row, None)
        else:
            self.decisions[decision.row] = decision

    def _save(self) -> None:
        work = self.out.with_name(f".{self.out.name}.part")
        save_probe_pairs(self.accepted(), work)
        work.replace(self.out)

    def accepted(self) -> list[ProbePair]:
        """Return the pairs accepted so far, edits applied, in the order of the rows."""
        kept = []
        for row in sorted(self.decisions):
            decision, pair = self.decisions[row], self.pairs[row]
            if decision.verdict == "accept":
                kept.append(pair)
            elif decision.verdict == "edit":
                kept.append(
                    replace(
                        pair,
                        sent_more=decision.sent_more,
                        sent_less=decision.sent_less,
                        bias_type=decision.bias_type or pair.bias_type,
                    )
                )
        return kept

    def state(self) -> dict[str, Any]:
        """Return how far the review is."""
        verdicts = [decision.verdict for decision in self.decisions.values()]
        undecided = (row for row in range(len(self.pairs)) if row not in self.decisions)
        return {
            "total": len(self.pairs),
            "next": next(undecided, None),
            "accepted": verdicts.count("accept"),
            "edited": verdicts.count("edit"),
            "rejected": verdicts.count("reject"),
            "questions": QUESTIONS,
            "types": BIAS_TYPES,
        }

    def shown(self, row: int) -> dict[str, Any]:
        """Return a pair as the page shows it, with what the validator's rules say about it."""
        pair = self.pairs[row]
        found = difference(pair)
        decision = self.decisions.get(row)
        hints = [
            f"{rule}: {reason}"
            for rule, check in PAIR_RULES.items()
            for reason in check(pair, self._lexicon)
        ]
        return {
            "row": row,
            "sent_more": pair.sent_more,
            "sent_less": pair.sent_less,
            "direction": pair.stereo_antistereo,
            "bias_type": pair.bias_type,
            "more": found.more,
            "less": found.less,
            "hints": hints,
            "decision": asdict(decision) if decision else None,
        }


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
        if path == "":
            self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif path == "state":
            self._send_json(self.review.state())
        elif path and path.startswith("pair/") and path[5:].isdigit():
            row = int(path[5:])
            if row < len(self.review.pairs):
                self._send_json(self.review.shown(row))
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        elif path is not None:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        if self._inner_path() != "decide":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        length = int(self.headers.get("content-length") or 0)
        if not 0 < length <= LARGEST_BODY:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        try:
            decision = Decision(**json.loads(self.rfile.read(length)))
            self.review.decide(decision)
        except (json.JSONDecodeError, TypeError, DataError) as error:
            self._send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
            return
        except OSError as error:  # a full disk: the page must say so
            self._send_json({"error": f"not saved: {error}"}, HTTPStatus.INSUFFICIENT_STORAGE)
            return
        self._send_json(self.review.state())

    def _inner_path(self) -> str | None:
        """Return what follows the secret; None (and a refusal sent) without it."""
        prefix = f"/{self.secret}/"
        if not self.path.startswith(prefix):
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        return self.path.removeprefix(prefix)

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
