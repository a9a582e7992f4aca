"""Settings of one benchmark, checked against what it knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from biasdiff.errors import ConfigError, nearest
from biasdiff.evaluation.benchmark import Options


def checked_options(given: Options, benchmark: str, defaults: Options) -> dict[str, Any]:
    """Return the settings of a benchmark, the defaults where nothing is said.

    Raises:
        ConfigError: If a setting is none of the benchmark's.
    """
    for name in given:
        if name not in defaults:
            raise ConfigError(
                f"{benchmark} has no option {name!r}{nearest(name, defaults)}",
                expected=f"some of {', '.join(defaults)}"
                if defaults
                else "none: it has no options",
                remedy=f"mend evaluate.options.{benchmark}",
            )
    return {**defaults, **given}


def without_options(
    benchmark: str, files: Callable[[], Mapping[str, Path]] = dict
) -> Callable[[Options], Mapping[str, Path]]:
    """Return the ``files`` of a benchmark that has no options and refuses any that is given."""

    def checked_files(given: Options) -> Mapping[str, Path]:
        checked_options(given, benchmark, {})
        return files()

    return checked_files


def wrong_option(benchmark: str, name: str, value: Any, expected: str) -> ConfigError:
    """Return the error for a setting out of range."""
    return ConfigError(
        f"{benchmark}: {name} is {value!r}",
        expected=expected,
        remedy=f"mend evaluate.options.{benchmark}.{name}",
    )
