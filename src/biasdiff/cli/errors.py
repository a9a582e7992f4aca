"""How errors leave the command line: one clear line and exit code 2, no traceback unless asked."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer

from biasdiff.errors import ArtifactError, BiasdiffError
from biasdiff.progress import say

USER_ERROR, INTERRUPTED = 2, 130


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into a line on stderr and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> None:
        debug = options.get("debug", False)
        _silence_libraries(debug=debug)
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            say("interrupted; the same command goes on from here")
            raise typer.Exit(INTERRUPTED) from None
        except BiasdiffError as error:
            _fail(error, debug=debug)
        except Exception as error:
            known = _known_fault(error)
            if known is None:
                raise
            _fail(known, debug=debug, cause=error)

    return wrapped


def _fail(error: BiasdiffError, *, debug: bool, cause: BaseException | None = None) -> None:
    if debug:
        raise error from cause
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise typer.Exit(USER_ERROR)


def _known_fault(error: BaseException) -> BiasdiffError | None:
    """Recognise a full disk or a missing permission, whichever library met it."""
    code, text = getattr(error, "errno", None), str(error)
    full = ("No space left on device", "PytorchStreamWriter failed writing", "unexpected pos")
    if code in (errno.ENOSPC, errno.EDQUOT) or any(words in text for words in full):
        return ArtifactError(
            f"the disk is full ({text.splitlines()[0] if text else 'no space left'})",
            expected="free space",
            remedy="free some and give the same command again; finished work is kept",
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ArtifactError(
            f"{getattr(error, 'filename', None) or 'the output'} cannot be written",
            expected="write permission",
            remedy="change the permissions or name another folder",
        )
    return None


def _silence_libraries(*, debug: bool) -> None:
    """Keep the libraries' own chatter off the screen; biasdiff says what matters itself."""
    if debug:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
