"""Which estimators a config asks for, and whether its settings go together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biasdiff.attribution.estimator import Estimator, GradientEstimator
from biasdiff.attribution.parameters import LORA
from biasdiff.attribution.registry import ESTIMATORS
from biasdiff.attribution.train_sides import NEEDS_ADAM, TRAIN_SIDES
from biasdiff.config import AttributionConfig, Config
from biasdiff.errors import ConfigError, nearest


def chosen_estimators(config: Config) -> dict[str, Estimator]:
    """Return the estimators to compute, the selecting one first.

    Raises:
        ConfigError: If a name, a train side or an option is unknown, or settings contradict each
            other.
    """
    section = config.attribution
    chosen: dict[str, Estimator] = {}
    for name in dict.fromkeys([section.estimator, *section.also]):
        _known(name, ESTIMATORS, "estimator")
        chosen[name] = ESTIMATORS[name]
        chosen[name].check(section.options.get(name, {}))
    for name in section.options:
        _known(name, ESTIMATORS, "estimator")
    if section.train_side is not None:
        _known(section.train_side, TRAIN_SIDES, "train side")
    if section.checkpoint is not None and section.checkpoints == "all":
        raise ConfigError(
            f"checkpoint is {section.checkpoint} and checkpoints is 'all'",
            expected="one of them",
            remedy="drop one of the two",
        )
    if section.parameters != LORA:
        _require_no_adam(section, chosen)
    return chosen


def _require_no_adam(section: AttributionConfig, chosen: Mapping[str, Estimator]) -> None:
    """Refuse what LoRA's Adam moments, or its linear maps, are needed for."""
    for name, estimator in chosen.items():
        if not isinstance(estimator, GradientEstimator):
            continue
        side = train_side_of(name, estimator, section)
        if side in NEEDS_ADAM or estimator.curvature is not None:
            raise ConfigError(
                f"parameters is {section.parameters!r}, and {name} needs Adam moments or curvature "
                "of them, which a checkpoint has of its adapter only",
                expected="an estimator of plain gradients",
                remedy="use sgd_cos, sgd_dot, contrast or contrast_classifier",
            )


def train_side_of(name: str, estimator: GradientEstimator, section: AttributionConfig) -> str:
    """Return the train side of an estimator; a setting is for the selecting one."""
    chosen = section.train_side if name == section.estimator else None
    return estimator.train_side if chosen is None else chosen


def _known(name: str, choices: Mapping[str, Any], kind: str) -> None:
    if name not in choices:
        raise ConfigError(
            f"unknown {kind} {name!r}{nearest(name, choices)}",
            expected=f"one of {', '.join(choices)}",
            remedy="choose one of these",
        )


def require_fit_for_store(
    adapter: str | Path | None, estimators: Mapping[str, Estimator], config: Config
) -> None:
    """Refuse what stored features cannot give.

    Raises:
        ConfigError: The first such setting is named.
    """
    section, side = config.attribution, config.features.train_side
    problems = {
        "no adapter is named": adapter is None,
        "checkpoints is 'all'": section.checkpoints == "all",
        f"group is {section.group}": section.group > 1,
        f"parameters is {section.parameters!r}": section.parameters != LORA,
    }
    for name, estimator in estimators.items():
        if isinstance(estimator, GradientEstimator):
            own = train_side_of(name, estimator, section)
            problems[f"{name} has the train side {own!r}, the features {side!r}"] = own != side
    found = [problem for problem, there in problems.items() if there]
    if found:
        raise ConfigError(
            f"--features is given, and {found[0]}",
            expected="estimators of the stored train side, at the one adapter they were made at",
            remedy="set features.train_side and build such a store, or leave --features out",
        )
