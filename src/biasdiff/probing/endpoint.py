"""An OpenAI-compatible chat endpoint: one question, one answer, patience in between."""

from __future__ import annotations

import asyncio
import email.utils
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from biasdiff.errors import BiasdiffError, ConfigError

KEY_VARIABLE = "BIASDIFF_API_KEY"
"""No other variable is read: a key for one service must not be sent to another."""
LONGEST_WAIT_SECONDS = 60.0
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class EndpointError(BiasdiffError):
    """The endpoint cannot be used at all: wrong address, wrong key, wrong model."""


class NoAnswer(Exception):
    """One request got no usable answer; another may."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        self.reason, self.retry_after = reason, retry_after
        super().__init__(reason)


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: The message.
        cut: Whether it stopped at the token limit.
    """

    text: str
    cut: bool


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    Attributes:
        url: Base address, with or without ``/v1``.
        model: Name of the model there.
        temperature: Of sampling.
        max_tokens: Of an answer.
        timeout: Seconds until an answer must be there whole.
        attempts: Tries of one request.
        first_wait: Seconds; about how long to wait before the second try, doubling afterwards.
    """

    url: str
    model: str
    temperature: float = 1.0
    max_tokens: int = 1024
    timeout: float = 120.0
    attempts: int = 6
    first_wait: float = 1.0

    @property
    def address(self) -> str:
        """Address of chat completions."""
        base = self.url.rstrip("/").removesuffix("/chat/completions")
        return f"{base}/chat/completions" if base.endswith("/v1") else f"{base}/v1/chat/completions"

    async def ask(
        self,
        client: httpx.AsyncClient,
        prompt: str,
        *,
        seed: int,
        waiting: Callable[[str], None] = lambda reason: None,
    ) -> Answer:
        """Ask once, trying again after rate limits, faults of the server and broken answers.

        Args:
            client: With the headers of `headers`.
            prompt: The user's message.
            seed: Passed on; endpoints that know it answer the same again.
            waiting: Called with the reason before each further try.

        Raises:
            NoAnswer: If no try brought a usable answer.
            EndpointError: If the endpoint refuses for a reason that no further try mends.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(NoAnswer),
            stop=stop_after_attempt(self.attempts),
            wait=_wait(self.first_wait),
            before_sleep=lambda state: waiting(_reason(state)),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                return await self._ask_once(client, prompt, seed)
        raise AssertionError("unreachable: tenacity either returns or raises")

    async def _ask_once(self, client: httpx.AsyncClient, prompt: str, seed: int) -> Answer:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed,
            "stream": False,
        }
        try:
            async with asyncio.timeout(self.timeout):  # httpx would only limit each read
                response = await client.post(self.address, json=body, timeout=None)
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {self.timeout:g} s") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise EndpointError(
                f"{self.address!r} is no address",
                expected="an OpenAI-compatible chat endpoint",
                remedy="give --endpoint as http://host:port/v1",
            ) from error
        except httpx.ConnectError as error:
            raise NoAnswer(f"{self.address} cannot be reached") from error
        except httpx.HTTPError as error:
            raise NoAnswer(f"{type(error).__name__}") from error
        if response.status_code in _RETRIED:
            raise NoAnswer(f"status {response.status_code}", _retry_after(response))
        if response.status_code != 200:
            raise self._refused(response)
        return _answer(response)

    def _refused(self, response: httpx.Response) -> EndpointError:
        remedies = {
            401: f"set {KEY_VARIABLE} to a valid key",
            403: f"set {KEY_VARIABLE} to a key that may use this model",
            404: "check --endpoint and --model",
        }
        detail = " ".join(_without_key(response.text).split())[:200]
        return EndpointError(
            f"{self.address} answers with status {response.status_code}: {detail}",
            expected="an OpenAI-compatible chat endpoint",
            remedy=remedies.get(response.status_code, "check --endpoint and --model"),
        )


def headers() -> dict[str, str]:
    """Return the headers of a request; the key comes from the environment and goes nowhere else.

    Raises:
        ConfigError: If the key holds characters that a header cannot carry.
    """
    key = _key()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{KEY_VARIABLE} holds characters that no key has",
            expected="printable ASCII on one line",
            remedy="set it anew",
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _key() -> str:
    """Return the key in the environment without the space that files leave there."""
    return os.environ.get(KEY_VARIABLE, "").strip()


def _without_key(text: str) -> str:
    """Hide the key in what an endpoint sends back; some repeat it in their refusal."""
    return text.replace(_key(), "(key)") if _key() else text


def _answer(response: httpx.Response) -> Answer:
    try:
        choice = response.json()["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise NoAnswer(f"a broken answer ({type(error).__name__})") from error
    if not isinstance(text, str):
        raise NoAnswer("an answer without text")
    # half of a surrogate pair, which a cut emoji leaves in JSON, cannot be written to a file
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return Answer(whole, choice.get("finish_reason") == "length")


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("retry-after", "")
    try:
        return float(value) if math.isfinite(float(value)) else None
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
        return None


def _wait(first: float) -> Any:
    random_wait = wait_random_exponential(multiplier=first, max=LONGEST_WAIT_SECONDS)

    def seconds(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, NoAnswer) else None
        if asked is not None:
            return max(0.0, asked)
        return random_wait(state)

    return seconds


def _reason(state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0
    return f"{error}; trying again in {wait:.0f} s"
