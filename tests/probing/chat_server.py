"""A chat endpoint on this machine that speaks the OpenAI format and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GROUPS = {
    "age": ("old", "young"),
    "disability": ("blind", "sighted"),
    "gender": ("male", "female"),
    "nationality": ("Dutch", "Greek"),
    "physical-appearance": ("short", "tall"),
    "race-color": ("Black", "white"),
    "religion": ("Hindu", "Catholic"),
    "sexual-orientation": ("gay", "straight"),
    "socioeconomic": ("rich", "poor"),
}
_THINGS = (
    "apples bells boots bricks buttons candles carts chairs clocks coats cups doors drums flags "
    "forks gates gloves hats jars keys kites lamps maps nets oars pans pens plates ropes rugs "
    "sails shelves spoons stamps stones tents tiles towels trays wheels"
)


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        number: From 0, in the order of arrival.
        prompt: The user's message.
        count: How many entries it asks for; 0 if it does not.
        bias_type: Of which type.
        headers: As received, names in lower case.
        body: As received.
        at: `time.monotonic` of its arrival.
    """

    number: int
    prompt: str
    count: int
    bias_type: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float


@dataclass(frozen=True)
class Response:
    """What the server sends.

    Attributes:
        status: Of HTTP.
        body: As sent.
        headers: Sent beside the content's type and length.
        missing_bytes: By which the announced length exceeds what is sent.
        delay: Seconds before anything is sent.
        drip: Seconds between two bytes; 0 sends all at once.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    missing_bytes: int = 0
    delay: float = 0.0
    drip: float = 0.0


Answering = Callable[[Asked], Response]


def saying(text: str | None, *, finish: str = "stop", delay: float = 0.0) -> Response:
    """Return a well-formed answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    body = {"id": "chat-1", "object": "chat.completion", "choices": [choice]}
    return Response(200, json.dumps(body).encode(), delay=delay)


def failing(status: int, text: str = "no", **headers: str) -> Response:
    """Return an error; ``retry_after="3"`` becomes the header Retry-After."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return Response(status, json.dumps({"error": {"message": text}}).encode(), named)


def sides(seed: int, bias_type: str) -> tuple[str, str]:
    """Return a mild pair; those of different seeds share few words."""
    *things, last = random.Random(seed).sample(_THINGS.split(), 7)
    one, other = (
        f"The {group} neighbour keeps {', '.join(things)} and {last} in the shed."
        for group in GROUPS[bias_type]
    )
    return one, other


def entry(seed: int, bias_type: str, index: int = 0) -> str:
    """Return a pair as the line of CSV that the prompt asks for."""
    more, less = sides(seed, bias_type)
    return f'{index},"{more}","{less}",stereo,{bias_type}'


def good(asked: Asked) -> Response:
    """Answer with the entries asked for: the same for the same prompt, others for others."""
    seed = int(hashlib.sha256(asked.prompt.encode()).hexdigest()[:8], 16)
    lines = [entry(seed + i, asked.bias_type, i) for i in range(asked.count)]
    return saying("\n".join(lines))


class ChatServer:
    """The server and what it saw.

    Attributes:
        answer: Called with every request; may be exchanged while the server runs.
        asked: The requests so far.
        most_at_once: Most requests that were under way together.
    """

    def __init__(self, answer: Answering = good) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        handler = type("Handler", (_Handler,), {"chat": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def prompts(self) -> Counter[str]:
        """How often each prompt was sent."""
        return Counter(asked.prompt for asked in self.asked)

    def wait(self, seconds: float) -> None:
        """Let time pass, but not beyond the end of the server."""
        self._closing.wait(seconds)

    def take(self, headers: dict[str, str], body: dict[str, Any]) -> Response:
        """Note a request and return the answer, having waited as long as it says."""
        prompt = body["messages"][0]["content"]
        wanted = re.search(r"Generate (\d+) new entries of the type '([\w-]+)'", prompt)
        count, bias_type = (int(wanted[1]), wanted[2]) if wanted else (0, "age")
        with self._lock:
            now = time.monotonic()
            asked = Asked(len(self.asked), prompt, count, bias_type, headers, body, now)
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            response = self.answer(asked)
            self.wait(response.delay)
        finally:
            with self._lock:
                self._at_once -= 1
        return response

    @contextmanager
    def running(self) -> Iterator[ChatServer]:
        """Serve while the block runs."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._closing.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self._send(failing(404, f"no {self.path}"))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(self.chat.take(headers, body))

    def _send(self, response: Response) -> None:
        try:
            self.send_response(response.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(response.body) + response.missing_bytes))
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            step = 1 if response.drip else max(len(response.body), 1)
            for start in range(0, len(response.body), step):
                self.wfile.write(response.body[start : start + step])
                self.wfile.flush()
                self.chat.wait(response.drip)
        except OSError:  # the client has given up
            pass
        if response.missing_bytes:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""
