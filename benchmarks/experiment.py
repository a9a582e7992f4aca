"""How the long experiments answer the shell."""

from __future__ import annotations

import sys
from collections.abc import Callable

from biasdiff.errors import BiasdiffError


def exit_code(work: Callable[[], None]) -> int:
    """Do the work; return 0, 2 after one line for a known fault, or 130 for an interruption."""
    try:
        work()
    except BiasdiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
