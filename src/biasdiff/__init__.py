"""Find the training examples that bias a causal language model, remove their effect, prove it.

Every verb of the command line is a function here: `warmup`, `attribute`, `select`, `mitigate`,
`evaluate`, `report` on files, and `run` for all of them. They are imported at first use, so that
``import biasdiff`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biasdiff.config import Config as Config
    from biasdiff.config import load_config as load_config
    from biasdiff.pipeline.attribute import attribute as attribute
    from biasdiff.pipeline.evaluate import evaluate as evaluate
    from biasdiff.pipeline.mitigate import mitigate as mitigate
    from biasdiff.pipeline.report import report as report
    from biasdiff.pipeline.run import run as run
    from biasdiff.pipeline.select import select as select
    from biasdiff.pipeline.warmup import warmup as warmup

__version__ = version("biasdiff")

_HOMES = {
    "Config": "biasdiff.config",
    "load_config": "biasdiff.config",
    "attribute": "biasdiff.pipeline.attribute",
    "evaluate": "biasdiff.pipeline.evaluate",
    "mitigate": "biasdiff.pipeline.mitigate",
    "report": "biasdiff.pipeline.report",
    "run": "biasdiff.pipeline.run",
    "select": "biasdiff.pipeline.select",
    "warmup": "biasdiff.pipeline.warmup",
}
__all__ = [
    "Config",
    "attribute",
    "evaluate",
    "load_config",
    "mitigate",
    "report",
    "run",
    "select",
    "warmup",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'biasdiff' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
