"""Settings: nested ones by their names, and those of one benchmark or estimator, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from biasdiff.errors import ConfigError, nearest

Options = Mapping[str, Any]
"""Settings by name, as they were given."""
BENCHMARKS = "evaluate.options"
ESTIMATORS = "attribution.options"


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by ``section.name``, in their order; an empty section is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def checked_options(
    given: Options, name: str, defaults: Options, *, section: str = BENCHMARKS
) -> dict[str, Any]:
    """Return the settings of a benchmark or estimator, the defaults where nothing is said.

    Args:
        given: What was set.
        name: Of the benchmark or estimator.
        defaults: All settings it knows.
        section: Where they stand in the config, for the error message.

    Raises:
        ConfigError: If a setting is unknown.
    """
    for option in given:
        if option not in defaults:
            raise ConfigError(
                f"{name} has no option {option!r}{nearest(option, defaults)}",
                expected=f"some of {', '.join(defaults)}" if defaults else "none",
                remedy=f"mend {section}.{name}",
            )
    return {**defaults, **given}


def wrong_option(
    name: str, option: str, value: Any, expected: str, *, section: str = BENCHMARKS
) -> ConfigError:
    """Return the error for a setting out of range."""
    return ConfigError(
        f"{name}: {option} is {value!r}",
        expected=expected,
        remedy=f"mend {section}.{name}.{option}",
    )
