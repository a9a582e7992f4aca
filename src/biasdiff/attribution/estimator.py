"""What an estimator of influence is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from biasdiff.attribution.material import Material
from biasdiff.attribution.scores import Scores
from biasdiff.options import ESTIMATORS, Options, checked_options

Normalize = Literal["none", "train", "both"]
Precondition = Callable[..., dict[str, Tensor]]
"""``(model, encodings, directions, *, options, max_tokens, seed) -> directions``; see
`biasdiff.attribution.curvature`."""


def no_options(given: Options) -> None:
    """Refuse every option.

    Raises:
        ConfigError: If there is one.
    """
    checked_options(given, "this estimator", {}, section=ESTIMATORS)


@dataclass(frozen=True)
class GradientEstimator:
    """Compares a train direction with a probe direction; all of them share one pass.

    Attributes:
        name: On the command line.
        formula: Score of train example i, in words.
        probe: Key of the probe direction, see `probe_directions`.
        train_side: Default key into `TRAIN_SIDES`.
        normalize: Default: which sides are brought to unit length; ``both``: every probe vector
            before they are averaged, and the train direction; ``train``: the latter; ``none``.
        curvature: Method that the probe direction is preconditioned with; None for none.
        check: As that of `DirectEstimator`.
    """

    name: str
    formula: str
    probe: str
    train_side: str
    normalize: Normalize = "both"
    curvature: Precondition | None = None
    check: Callable[[Options], object] = no_options

    @property
    def needs_twins(self) -> bool:
        """Whether every probe pair must have its twin."""
        return self.probe != "plain"


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
