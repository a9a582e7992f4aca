"""What an estimator of influence is: a probe direction and a train side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Estimator:
    """A way to compute influence scores; higher = more bias-inducing, for every one of them.

    Attributes:
        name: On the command line.
        probe: Key of the probe direction, see `probe_directions`.
        train_side: Default key into `TRAIN_SIDES`.
        formula: Score of train example i, in words.
    """

    name: str
    probe: Literal["plain", "contrast"]
    train_side: str
    formula: str
