"""What an estimator of influence is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from biasdiff.attribution.material import Material
from biasdiff.attribution.scores import Scores
from biasdiff.options import Options

Normalize = Literal["none", "train", "both"]


@dataclass(frozen=True)
class GradientEstimator:
    """Compares a train direction with a probe direction; all of them share one pass.

    Attributes:
        name: On the command line.
        formula: Score of train example i, in words.
        probe: Key of the probe direction, see `probe_directions`.
        train_side: Default key into `TRAIN_SIDES`.
        normalize: Default: which sides are brought to unit length.
    """

    name: str
    formula: str
    probe: str
    train_side: str
    normalize: Normalize = "both"


@dataclass(frozen=True)
class DirectEstimator:
    """Scores the train set in a way of its own: baselines, and what needs no train gradient.

    Attributes:
        name: On the command line.
        formula: Score of train example i, in words.
        score: From the material to scores, higher = more bias-inducing.
        check: Raises `ConfigError` for options that are unknown or out of range, before any work.
        needs_twins: Whether every probe pair must have its twin.
        is_baseline: Whether it must be beaten by whatever costs more.
        is_lexical: Whether it looks at words alone.
    """

    name: str
    formula: str
    score: Callable[[Material], Scores]
    check: Callable[[Options], object]
    needs_twins: bool = False
    is_baseline: bool = False
    is_lexical: bool = False


Estimator = GradientEstimator | DirectEstimator
