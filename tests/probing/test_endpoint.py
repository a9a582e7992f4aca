"""One question to a real server on this machine that answers well, badly or not at all."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from biasdiff.errors import ConfigError
from biasdiff.probing.endpoint import Answer, Endpoint, EndpointError, NoAnswer, headers
from probing.chat_server import ChatServer, Response, failing, good, saying

KEY = "sk-test-5f0c/+=?"
FINE = saying("A fine day.")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIASDIFF_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer().running() as running:
        yield running


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note the waits between tries instead of sitting through them."""
    seconds: list[float] = []

    async def note(wait: float, *_: object) -> None:
        seconds.append(wait)

    monkeypatch.setattr(asyncio, "sleep", note)
    return seconds


def ask(
    server: ChatServer, *responses: Response, said: list[str] | None = None, **settings: float
) -> Answer:
    """Ask a server that gives these responses in turn, the last one over and over."""
    if responses:
        server.answer = lambda asked: responses[min(asked.number, len(responses) - 1)]
    endpoint = replace(Endpoint(server.url, "small-model"), **settings)  # type: ignore[arg-type]
    notes = [] if said is None else said

    async def once() -> Answer:
        async with httpx.AsyncClient(headers=headers()) as client:
            return await endpoint.ask(client, "Well?", seed=7, waiting=notes.append)

    return asyncio.run(once())


def test_the_request_and_the_answer(server: ChatServer) -> None:
    assert ask(server, FINE, temperature=0.25, max_tokens=99) == Answer("A fine day.", cut=False)
    (asked,) = server.asked
    assert asked.body == {
        "model": "small-model",
        "messages": [{"role": "user", "content": "Well?"}],
        "temperature": 0.25,
        "max_tokens": 99,
        "seed": 7,
        "stream": False,
    }
    assert asked.headers["content-type"] == "application/json"


def test_an_answer_cut_at_the_token_limit(server: ChatServer) -> None:
    assert ask(server, saying("A fi", finish="length")) == Answer("A fi", cut=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://here:1/v1",
        "http://here:1/v1/",
        "http://here:1",
        "http://here:1/",
        "http://here:1/v1/chat/completions",
    ],
)
def test_the_address_with_and_without_its_ending(url: str) -> None:
    assert Endpoint(url, "m").address == "http://here:1/v1/chat/completions"


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_faults_that_pass_are_tried_again(
    status: int, server: ChatServer, slept: list[float]
) -> None:
    said: list[str] = []
    answer = ask(server, failing(status), failing(status), FINE, said=said)
    assert answer.text == "A fine day."
    assert len(server.asked) == 3
    assert [line.split(";")[0] for line in said] == [f"status {status}"] * 2
    assert said[1].endswith(f"; trying again in {slept[1]:.0f} s")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Response(200, b'{"choices": [{"mess'), "a broken answer (JSONDecodeError)"),
        (Response(200, b'{"\xff": 1}'), "a broken answer (UnicodeDecodeError)"),
        (Response(200, b""), "a broken answer (JSONDecodeError)"),
        (Response(200, b'{"choices": []}'), "a broken answer (IndexError)"),
        (Response(200, b'{"choices": null}'), "a broken answer (TypeError)"),
        (Response(200, b'{"error": {"message": "busy"}}'), "a broken answer (KeyError)"),
        (Response(200, b'{"choices": [{"text": "old"}]}'), "a broken answer (KeyError)"),
        (Response(200, b"[1]"), "a broken answer (TypeError)"),
        (saying(None), "an answer without text"),
        (replace(FINE, missing_bytes=9), "RemoteProtocolError"),
        (failing(503), "status 503"),
    ],
)
def test_broken_answers_are_tried_again_and_then_given_up(
    response: Response, reason: str, server: ChatServer, slept: list[float]
) -> None:
    assert ask(server, response, FINE).text == "A fine day."
    server.asked.clear()
    said: list[str] = []
    with pytest.raises(NoAnswer) as error:
        ask(server, response, attempts=4, said=said)
    assert str(error.value) == error.value.reason == reason
    assert len(server.asked) == 4
    assert len(said) == 3
    assert len(slept) == 4


@pytest.mark.parametrize(
    "late",
    [replace(FINE, delay=30), replace(FINE, drip=0.02)],
    ids=["nothing comes", "every byte comes in time"],
)
def test_an_answer_later_than_the_timeout(late: Response, server: ChatServer) -> None:
    began = time.monotonic()
    with pytest.raises(NoAnswer, match=r"^no answer within 0\.3 s$"):
        ask(server, late, timeout=0.3, attempts=1)
    assert 0.3 <= time.monotonic() - began < 1.5


def test_a_late_answer_is_tried_again(server: ChatServer) -> None:
    answer = ask(server, replace(FINE, delay=30), FINE, timeout=0.3, first_wait=0.01)
    assert answer.text == "A fine day."


def test_nobody_listens() -> None:
    gone = ChatServer()
    with gone.running():
        pass
    with pytest.raises(NoAnswer, match=rf"^{gone.url}/chat/completions cannot be reached$"):
        ask(gone, attempts=2, first_wait=0.01)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "here/v1", "http://[::1/v1", "ftp://here/v1"])
def test_what_is_no_address_is_refused_at_once(url: str, slept: list[float]) -> None:
    endpoint = Endpoint(url, "m")

    async def once() -> None:
        async with httpx.AsyncClient() as client:
            await endpoint.ask(client, "Well?", seed=0)

    with pytest.raises(EndpointError) as error:
        asyncio.run(once())
    assert str(error.value) == (
        f"{endpoint.address!r} is no address; expected an OpenAI-compatible chat endpoint; "
        "give --endpoint as http://host:port/v1."
    )
    assert slept == []


def test_waits_follow_retry_after_in_seconds(server: ChatServer, slept: list[float]) -> None:
    said: list[str] = []
    ask(
        server,
        failing(429, retry_after="7"),
        failing(503, retry_after="90"),
        failing(429, retry_after="0"),
        failing(429, retry_after="-3"),
        FINE,
        said=said,
    )
    assert slept == [7, 90, 0, 0]
    assert said[:2] == [
        "status 429; trying again in 7 s",
        "status 503; trying again in 90 s",
    ]


def test_waits_follow_retry_after_as_a_date(server: ChatServer, slept: list[float]) -> None:
    ahead, gone = (
        email.utils.formatdate(time.time() + seconds, usegmt=True) for seconds in (40, -40)
    )
    ask(server, failing(429, retry_after=ahead), failing(429, retry_after=gone), FINE)
    assert slept[0] == pytest.approx(39, abs=3)
    assert slept[1] == 0


@pytest.mark.parametrize("value", ["soon", "", "inf", "nan", "Wed, 99 Foo 2030 00:00:00 GMT"])
def test_waits_where_retry_after_says_nothing(
    value: str, server: ChatServer, slept: list[float]
) -> None:
    ask(server, *[failing(429, retry_after=value)] * 4, FINE, first_wait=2)
    assert len(slept) == 4
    for number, seconds in enumerate(slept):
        assert 0 <= seconds <= 2 * 2**number


def test_waits_grow_up_to_a_minute(server: ChatServer, slept: list[float]) -> None:
    with pytest.raises(NoAnswer):
        ask(server, failing(500), attempts=40, first_wait=1)
    assert len(slept) == 39
    assert max(slept) <= 60
    assert sum(slept[8:]) > 300


def test_a_real_wait(server: ChatServer) -> None:
    ask(server, failing(429, retry_after="0.4"), FINE, first_wait=60)
    first, second = (asked.at for asked in server.asked)
    assert 0.4 <= second - first < 2


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (400, "check --endpoint and --model"),
        (401, "set BIASDIFF_API_KEY to a valid key"),
        (403, "set BIASDIFF_API_KEY to a key that may use this model"),
        (404, "check --endpoint and --model"),
        (307, "check --endpoint and --model"),
    ],
)
def test_refusals_that_no_further_try_mends(
    status: int, remedy: str, server: ChatServer, slept: list[float]
) -> None:
    with pytest.raises(EndpointError) as error:
        ask(server, Response(status, b"no\n   such thing"))
    assert str(error.value) == (
        f"{server.url}/chat/completions answers with status {status}: no such thing; "
        f"expected an OpenAI-compatible chat endpoint; {remedy}."
    )
    assert len(server.asked) == 1
    assert slept == []


def test_a_long_refusal_is_shortened(server: ChatServer) -> None:
    with pytest.raises(EndpointError) as error:
        ask(server, failing(400, "very " * 1000 + "long"))
    assert len(str(error.value)) < 400


def test_the_key_is_sent_as_a_bearer(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(server, FINE)
    monkeypatch.setenv("OPENAI_API_KEY", "other")  # a key for one service is not sent to another
    ask(server, FINE)
    monkeypatch.setenv("BIASDIFF_API_KEY", KEY)
    ask(server, FINE)
    monkeypatch.setenv("BIASDIFF_API_KEY", f" {KEY}\n")  # as files and secret stores leave it
    ask(server, FINE)
    sent = [asked.headers.get("authorization") for asked in server.asked]
    assert sent == [None, None, f"Bearer {KEY}", f"Bearer {KEY}"]
    assert all(KEY not in json.dumps(asked.body) for asked in server.asked)


@pytest.mark.parametrize("around", ["", "\n"])
def test_a_refusal_that_repeats_the_key_is_shown_without_it(
    around: str, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIASDIFF_API_KEY", KEY + around)
    server.answer = lambda asked: failing(401, f"wrong: {asked.headers['authorization']}")
    with pytest.raises(EndpointError) as error:
        ask(server)
    assert "wrong: Bearer (key)" in str(error.value)
    assert KEY not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("key", ["“sk-test”", "sk-\ntest", "sk-\ttest"])
def test_a_key_that_no_header_can_carry(
    key: str, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIASDIFF_API_KEY", key)
    with pytest.raises(ConfigError) as error:
        ask(server)
    assert str(error.value) == (
        "BIASDIFF_API_KEY holds characters that no key has; expected printable ASCII on one line; "
        "set it anew."
    )
    assert key not in "".join(traceback.format_exception(error.value))
    assert server.asked == []


def test_half_an_emoji_becomes_something_that_can_be_written(server: ChatServer) -> None:
    body = saying("x").body.replace(b'"x"', b'"fine \\ud83d"')
    answer = ask(server, Response(200, body))
    assert answer.text == "fine ?"
    assert answer.text.encode() == b"fine ?"


def test_the_server_counts_prompts_and_answers_them_alike(server: ChatServer) -> None:
    assert ask(server) == ask(server) == Answer("", cut=False)
    assert server.prompts == {"Well?": 2}
    assert server.answer is good
