"""Options that several verbs share, and how they become settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biasdiff.errors import ConfigError
from biasdiff.progress import configure

if TYPE_CHECKING:
    from biasdiff.config import Config


def _quiet(value: bool) -> bool:
    configure(quiet=value)
    return value


Model = Annotated[str | None, typer.Option(help="Folder, hub id, .gguf file or smollm2-135m.")]
Train = Annotated[str | None, typer.Option(help="Train data: JSONL, CSV, Parquet or a dataset id.")]
Probe = Annotated[
    str | None, typer.Option(help="Probe pairs: CSV in CrowS-Pairs columns, or 'shipped'.")
]
OutFolder = Annotated[Path | None, typer.Option(help="Output folder.")]
Adapter = Annotated[Path | None, typer.Option(help="Adapter or warm-up folder.")]
RunFolder = Annotated[Path | None, typer.Option(help="Run directory, instead of naming files.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the texts. [default: text]")]
Fraction = Annotated[float | None, typer.Option(help="Share to select, in (0, 1]. [default: 0.35]")]
Estimator = Annotated[
    str | None,
    typer.Option(help="How scores are computed; see docs/method.md. [default: contrast]"),
]
Also = Annotated[
    str | None,
    typer.Option(help="Further estimators and baselines, separated by commas; reported only."),
]
TrainSide = Annotated[
    str | None, typer.Option(help="sgd, less, adam or adam_v. [default: the estimator's]")
]
Seed = Annotated[int | None, typer.Option(help="Of every random choice. [default: 0]")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse texts beyond the context instead of cutting.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML settings to start from.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change a setting; may be repeated."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Make anew what other settings or inputs made.")
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="Plain progress lines.", callback=_quiet),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def settings(config: Path | None, changes: list[str] | None, options: Mapping[str, Any]) -> Config:
    """Return the config of a verb: the file, then ``--set``, then the options that were given."""
    from biasdiff.config import load_config

    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return load_config(config, [*(changes or []), *given])


def one_stage_of_run(
    run: Path | None, stage: str, needed: Mapping[str, object], force: bool
) -> bool:
    """Run a stage of a run directory if one is given; else check that all files are named.

    Raises:
        ConfigError: If neither a run nor all the files are given.
    """
    if run is not None:
        from biasdiff.pipeline.run import run_stages

        for folder in run_stages(run, stage, force=force):
            typer.echo(folder)
        return True
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not given",
            expected=f"{', '.join(needed)}, or --run",
            remedy="name them, or a run directory",
        )
    return False
