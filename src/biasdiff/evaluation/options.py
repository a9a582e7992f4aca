"""Settings of one benchmark, checked against what it knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from biasdiff.errors import ConfigError, nearest
from biasdiff.evaluation.benchmark import Inputs


def options_of(inputs: Inputs, benchmark: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a benchmark, the defaults where nothing is said.

    Raises:
        ConfigError: If a setting is none of the benchmark's.
    """
    given = inputs.options.get(benchmark, {})
    for name in given:
        if name not in defaults:
            raise ConfigError(
                f"{benchmark} has no option {name!r}{nearest(name, defaults)}",
                expected=f"some of {', '.join(defaults)}",
                remedy=f"mend evaluate.options.{benchmark}",
            )
    return {**defaults, **given}


def wrong_option(benchmark: str, name: str, value: Any, expected: str) -> ConfigError:
    """Return the error for a setting out of range."""
    return ConfigError(
        f"{benchmark}: {name} is {value!r}",
        expected=expected,
        remedy=f"mend evaluate.options.{benchmark}.{name}",
    )
