"""Pairs asked from a chat model, request by request, each answer on disk before the next step.

Everything that arrives is appended to ``OUT.replies.jsonl``; the pairs and what was rejected are
made from that file, so a killed run goes on with the requests that are not in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from biasdiff.data.draws import shipped_draw
from biasdiff.data.near_duplicates import THRESHOLD, NgramIndex
from biasdiff.data.probe import ProbePair, save_probe_pairs
from biasdiff.errors import ArtifactError, ConfigError, nearest
from biasdiff.probing.endpoint import KEY_VARIABLE, Endpoint, EndpointError, NoAnswer, headers
from biasdiff.probing.lexicon import Lexicon
from biasdiff.probing.prompt import EXAMPLES, generation_prompt
from biasdiff.probing.replies import Parsed, parse_reply
from biasdiff.probing.validation import BIAS_TYPES, PAIR_RULES
from biasdiff.progress import Task, say, task

FAILURES_IN_A_ROW = 10
RULES = tuple(name for name in PAIR_RULES if name != "group word")
"""What a pair must pass to be kept; group words are left to `probe validate` and its lexicon."""


@dataclass(frozen=True)
class Request:
    """How many pairs of which types are wanted, and how they are asked for.

    Attributes:
        pairs: To be kept in the end.
        types: Bias types, asked for in turn.
        pairs_a_request: Entries asked for at once.
        seed: Of the examples shown.
        concurrency: Requests under way at once.
        max_requests: After which the run ends with what it has; None for ten times as many as
            would do if every entry were good.
    """

    pairs: int
    types: tuple[str, ...] = BIAS_TYPES
    pairs_a_request: int = 10
    seed: int = 0
    concurrency: int = 4
    max_requests: int | None = None

    @property
    def limit(self) -> int:
        """Requests at most."""
        least = -(-self.pairs // self.pairs_a_request)
        return self.max_requests or max(10, 10 * least)


@dataclass
class Harvest:
    """What the replies gave.

    Attributes:
        pairs: Kept.
        rejected: What was not kept: request, text, reason.
        replies: Number of replies.
    """

    pairs: list[ProbePair] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    replies: int = 0

    def reasons(self) -> Counter[str]:
        """Count the reasons for which something was not kept."""
        return Counter(entry["reason"].split(":")[0] for entry in self.rejected)


class Generation:
    """A run of generation and its files.

    Args:
        endpoint: Whom to ask.
        request: What to ask for.
        out: CSV of the pairs; the other files lie beside it.
        avoid: Sentences no pair may nearly repeat, those of benchmarks for example.

    Raises:
        ConfigError: If a type is unknown or a number is below 1.
        ArtifactError: If the files of a run with other settings are there.
    """

    def __init__(
        self, endpoint: Endpoint, request: Request, out: Path, avoid: Iterable[str] = ()
    ) -> None:
        _check(request)
        _check_address(endpoint.url)
        self.endpoint, self.request, self.out = endpoint, request, out
        self.replies_file = out.with_name(f"{out.stem}.replies.jsonl")
        self.rejected_file = out.with_name(f"{out.stem}.rejected.jsonl")
        self.settings_file = out.with_name(f"{out.stem}.generation.json")
        self._index = NgramIndex(list(avoid))
        self._harvest = Harvest()
        self._examples = [p for p in shipped_draw("rest") if p.stereo_antistereo == "stereo"]
        self._asked: set[int] = set()
        out.parent.mkdir(parents=True, exist_ok=True)
        self._compare_settings()
        self._recover()

    def run(self) -> Harvest:
        """Ask until there are enough pairs; go on where an earlier run stopped.

        Raises:
            EndpointError: If the endpoint cannot be used, or ten requests in a row got no answer.
        """
        asyncio.run(self._run())
        return self._harvest

    async def _run(self) -> None:
        missing = self.request.pairs - len(self._harvest.pairs)
        if missing <= 0:
            return
        limits = httpx.Limits(max_connections=self.request.concurrency)
        with task("pairs", self.request.pairs) as progress:
            progress.skip(len(self._harvest.pairs))
            async with httpx.AsyncClient(headers=headers(), limits=limits) as client:
                await self._work(client, progress)

    async def _work(self, client: httpx.AsyncClient, progress: Task) -> None:
        numbers = iter(n for n in range(self.request.limit) if n not in self._asked)
        failures = 0
        running: set[asyncio.Task[bool]] = set()
        done: set[asyncio.Task[bool]] = set()
        try:
            while True:
                while len(running) < self.request.concurrency and self._wanted(len(running)):
                    number = next(numbers, None)
                    if number is None:
                        break
                    running.add(asyncio.create_task(self._one(client, number, progress)))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for finished in done:
                    failures = 0 if finished.result() else failures + 1
                if failures >= FAILURES_IN_A_ROW:
                    raise EndpointError(
                        f"{failures} requests in a row got no answer from {self.endpoint.address}",
                        expected="answers",
                        remedy="check the endpoint; the same command goes on from here",
                    )
        finally:
            for left in running:
                left.cancel()
            await asyncio.gather(*running, *done, return_exceptions=True)

    def _wanted(self, running: int) -> bool:
        """Ask no more than the replies under way can be expected to leave missing."""
        missing = self.request.pairs - len(self._harvest.pairs)
        kept_a_reply = len(self._harvest.pairs) / max(self._harvest.replies, 1)
        expected = running * (kept_a_reply or self.request.pairs_a_request)
        return missing > expected or (missing > 0 and running == 0)

    async def _one(self, client: httpx.AsyncClient, number: int, progress: Task) -> bool:
        bias_type = self.request.types[number % len(self.request.types)]
        draw = random.Random(f"{self.request.seed}-{number}")
        examples = draw.sample(self._examples, EXAMPLES)
        prompt = generation_prompt(bias_type, self.request.pairs_a_request, examples)
        try:
            answer = await self.endpoint.ask(
                client,
                prompt,
                seed=self.request.seed + number,
                waiting=lambda reason: say(f"  request {number}: {reason}"),
            )
        except NoAnswer as error:
            say(f"  request {number}: given up ({error.reason})")
            return False
        reply = {"request": number, "type": bias_type, "text": answer.text, "cut": answer.cut}
        _append(self.replies_file, reply)
        before = len(self._harvest.pairs)
        self._take(reply)
        self._write()
        progress.advance(len(self._harvest.pairs) - before)
        return True

    def _take(self, reply: dict[str, Any]) -> None:
        """Add what a reply gives to the harvest."""
        number = reply["request"]
        self._asked.add(number)
        self._harvest.replies += 1
        items = parse_reply(reply["text"], asked_type=reply["type"], cut=reply["cut"])
        for place, item in enumerate(items):
            if not isinstance(item, Parsed):
                self._reject(number, item.text, f"unparsed: {item.reason}")
                continue
            pair = self._pair(item, f"gen-{number:05d}-{place:02d}")
            reason = self._fault(pair)
            if reason:
                self._reject(number, f"{item.sent_more} | {item.sent_less}", reason)
            elif len(self._harvest.pairs) < self.request.pairs:
                self._harvest.pairs.append(pair)
                self._index.add(pair.sent_more)
                self._index.add(pair.sent_less)
            else:
                self._reject(number, f"{item.sent_more} | {item.sent_less}", "surplus")

    def _pair(self, item: Parsed, name: str) -> ProbePair:
        provenance = f"generated by {self.endpoint.model}"
        return ProbePair(
            " ".join(item.sent_more.split()),
            " ".join(item.sent_less.split()),
            item.stereo_antistereo,  # type: ignore[arg-type]
            item.bias_type,
            len(self._harvest.pairs),
            {"id": name, "stereotype_id": name, "provenance": provenance},
        )

    def _fault(self, pair: ProbePair) -> str | None:
        if pair.bias_type not in self.request.types:
            return f"type: {pair.bias_type!r} was not asked for"
        for rule in RULES:
            for reason in PAIR_RULES[rule](pair, _NO_LEXICON):
                return f"{rule}: {reason}"
        for text in (pair.sent_more, pair.sent_less):
            jaccard, other = self._index.nearest(text)
            if jaccard >= THRESHOLD:
                return f"near-duplicate: {jaccard:.2f} of {other!r}"
        return None

    def _reject(self, number: int, text: str, reason: str) -> None:
        self._harvest.rejected.append({"request": number, "text": text, "reason": reason})

    def _write(self) -> None:
        ordered = sorted(self._harvest.pairs, key=lambda pair: pair.extra["id"])
        work = self.out.with_name(f".{self.out.name}.part")
        save_probe_pairs(ordered, work)
        work.replace(self.out)
        lines = [json.dumps(entry, ensure_ascii=False) for entry in self._harvest.rejected]
        work.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        work.replace(self.rejected_file)

    def _compare_settings(self) -> None:
        asked = {
            "endpoint": self.endpoint.address,
            "model": self.endpoint.model,
            "temperature": self.endpoint.temperature,
            "types": list(self.request.types),
            "pairs_a_request": self.request.pairs_a_request,
            "seed": self.request.seed,
        }
        if self.settings_file.exists():
            found = json.loads(self.settings_file.read_text(encoding="utf-8"))
            other = [name for name in asked if found.get(name) != asked[name]]
            if other:
                raise ArtifactError(
                    f"{self.out} was begun with another {other[0]} ({found.get(other[0])!r})",
                    expected=repr(asked[other[0]]),
                    remedy="give the same settings to go on, or another --out",
                )
        elif self.out.exists():
            raise ArtifactError(
                f"{self.out} exists and is no run of generation",
                expected="a new file, or one begun by this command",
                remedy="name another --out",
            )
        else:
            work = self.settings_file.with_name(f".{self.settings_file.name}.part")
            work.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
            work.replace(self.settings_file)

    def _recover(self) -> None:
        """Take in what an earlier run received, dropping a last line that was cut by a kill."""
        if not self.replies_file.exists():
            return
        content = self.replies_file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self.replies_file, len(whole))
        for line in whole.splitlines():
            self._take(json.loads(line))
        self._write()
        say(f"  going on after {self._harvest.replies} replies, {len(self._harvest.pairs)} pairs")


_NO_LEXICON = Lexicon(())


def _check_address(url: str) -> None:
    """Refuse a key in the address, which is written to the settings file and shown in errors."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "--endpoint holds a name, a password or a query",
            expected=f"an address alone; the key comes from {KEY_VARIABLE}",
            remedy=f"set {KEY_VARIABLE} and leave it out of the address",
        )


def _check(request: Request) -> None:
    for name in request.types:
        if name not in BIAS_TYPES:
            raise ConfigError(
                f"no bias type is called {name!r}{nearest(name, BIAS_TYPES)}",
                expected=f"some of {', '.join(BIAS_TYPES)}",
                remedy="mend --types",
            )
    for option, value in (
        ("--n", request.pairs),
        ("--per-request", request.pairs_a_request),
        ("--concurrency", request.concurrency),
        ("--max-requests", 1 if request.max_requests is None else request.max_requests),
    ):
        if value < 1:
            raise ConfigError(f"{option} is {value}", expected="1 or more", remedy="raise it")
    if not request.types:
        raise ConfigError("no type is given", expected="--types", remedy="name at least one")


def _append(path: Path, record: dict[str, Any]) -> None:
    """Append one line and see it to the disk, so that a kill right afterwards loses nothing."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
