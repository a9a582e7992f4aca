"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

_PLAIN_EVERY_SECONDS = 15.0
_settings = {"silent": True, "plain": True}


def configure(*, silent: bool = False, quiet: bool = False) -> None:
    """Choose how progress is shown by this process; a library user who never calls this sees none.

    Args:
        silent: Show nothing at all.
        quiet: Plain lines even on a terminal.
    """
    # Of several processes that accelerate or torchrun started, one speaks.
    _settings["silent"] = silent or os.environ.get("RANK", "0") != "0"
    _settings["plain"] = quiet or not sys.stderr.isatty()


def say(message: str) -> None:
    """Print one line of progress to stderr."""
    if not _settings["silent"]:
        Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)


class Task:
    """A piece of long work whose finished units are counted with `advance`."""

    def __init__(self, description: str, total: int, bar: Progress | None) -> None:
        self._description, self._total, self._bar = description, total, bar
        self._started = self._last_line = time.monotonic()
        self._done = self._skipped = 0
        self._id = bar.add_task(description, total=total) if bar is not None else None

    def skip(self, units: int) -> None:
        """Count units that an earlier run finished, leaving them out of the time estimate."""
        self._skipped += units
        self.advance(units)

    def advance(self, units: int = 1) -> None:
        """Count ``units`` more as finished."""
        self._done += units
        if self._bar is not None and self._id is not None:
            self._bar.advance(self._id, units)
            return
        now = time.monotonic()
        if now - self._last_line >= _PLAIN_EVERY_SECONDS:
            self._last_line = now
            fresh = max(self._done - self._skipped, 1)
            left = (now - self._started) / fresh * (self._total - self._done)
            say(f"  {self._description}: {self._done}/{self._total}, about {left:.0f} s left")


@contextmanager
def task(description: str, total: int) -> Iterator[Task]:
    """Show progress of ``total`` units of work while the block runs."""
    if _settings["silent"] or _settings["plain"]:
        yield Task(description, total, None)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Task(description, total, bar)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield ``items``, counting each as finished when the next one is asked for."""
    with task(description, total) as current:
        for item in items:
            yield item
            current.advance()
