"""The processes that ``accelerate launch`` or torchrun start: which one this is, and its share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Found = TypeVar("Found")


def _state() -> Any:
    """Return accelerate's state; where one process was started, none is set up."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    # The others wait while one trains, which may take longer than torch's own limit of minutes.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def count() -> int:
    """Return how many processes work together."""
    state = _state()
    return 1 if state is None else int(state.num_processes)


def number() -> int:
    """Return which of them this one is, from 0."""
    state = _state()
    return 0 if state is None else int(state.process_index)


def is_first() -> bool:
    """Return whether this is the process that writes what all made."""
    return number() == 0


def first_only(work: Callable[[], None]) -> None:
    """Let the first process do something that the others wait for."""
    if is_first():
        work()
    wait_for_all()


def share(items: Sequence[Item]) -> list[Item]:
    """Return every k-th item from this process's number on, of k processes."""
    return list(items[number() :: count()])


def wait_for_all() -> None:
    """Return when every process has come here."""
    state = _state()
    if state is not None:
        state.wait_for_everyone()


def gather(found: dict[int, Found]) -> dict[int, Found]:
    """Return what all processes have found, by number."""
    if _state() is None:
        return found
    from accelerate.utils import gather_object

    merged: dict[int, Found] = {}
    for part in gather_object([found]):
        merged |= part
    return merged


def add_up(tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes, in place."""
    if _state() is not None:
        torch.distributed.all_reduce(tensor)
