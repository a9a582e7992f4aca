"""The verb ``biasdiff features``: gradient features on disk, for many probe sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from biasdiff.cli.errors import guarded
from biasdiff.cli.options import Changes, ConfigFile, Debug, Quiet, Seed, TextColumn, settings

app = typer.Typer(
    help="Gradient features of a train set on disk, scored against any number of probe sets.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Model = Annotated[str, typer.Option(help="Folder, hub id, .gguf file or smollm2-135m.")]
Train = Annotated[str, typer.Option(help="Train data: JSONL, CSV, Parquet or a dataset id.")]
Adapter = Annotated[Path, typer.Option(help="Adapter or warm-up folder.")]
Side = Annotated[
    str | None, typer.Option("--train-side", help="sgd, less, adam or adam_v. [default: sgd]")
]
Projection = Annotated[
    str | None, typer.Option(help="none, sjlt, rademacher or gaussian. [default: sjlt]")
]
Dimensions = Annotated[int | None, typer.Option(help="Numbers in a row. [default: 8192]")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. [default: float16]")]
Checkpoint = Annotated[int | None, typer.Option(help="Epoch of a warm-up. [default: the last]")]


def _settings(config: Path | None, changes: list[str] | None, **given: Any) -> Any:
    names = {
        "side": "features.train_side",
        "projection": "features.projection",
        "dimensions": "features.dimensions",
        "dtype": "features.dtype",
        "checkpoint": "attribution.checkpoint",
        "fraction": "selection.fraction",
        "text_column": "data.text_column",
        "seed": "seed",
    }
    return settings(config, changes, {names[key]: value for key, value in given.items()})


@app.command()
@guarded
def build(
    model: Model,
    train: Train,
    adapter: Adapter,
    out: Annotated[Path, typer.Option(help="Folder of the store.")],
    train_side: Side = None,
    projection: Projection = None,
    dimensions: Dimensions = None,
    dtype: Dtype = None,
    checkpoint: Checkpoint = None,
    text_column: TextColumn = None,
    seed: Seed = None,
    config: ConfigFile = None,
    changes: Changes = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Store the train features; go on with an unfinished store, or mend a damaged one."""
    from biasdiff.pipeline.features import build_features

    chosen = _settings(
        config,
        changes,
        side=train_side,
        projection=projection,
        dimensions=dimensions,
        dtype=dtype,
        checkpoint=checkpoint,
        text_column=text_column,
        seed=seed,
    )
    typer.echo(build_features(model, train, adapter, out, config=chosen))


@app.command()
@guarded
def check(
    model: Model,
    train: Train,
    probe: Annotated[str, typer.Option(help="Probe pairs in CrowS-Pairs columns, or shipped.")],
    adapter: Adapter,
    features: Annotated[Path, typer.Option(help="Folder of the store.")],
    sample: Annotated[int, typer.Option(min=3, help="Rows to compare at most.")] = 200,
    train_side: Side = None,
    projection: Projection = None,
    dimensions: Dimensions = None,
    dtype: Dtype = None,
    checkpoint: Checkpoint = None,
    fraction: Annotated[
        float | None, typer.Option(help="Share that is selected. [default: 0.35]")
    ] = None,
    text_column: TextColumn = None,
    seed: Seed = None,
    config: ConfigFile = None,
    changes: Changes = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare scores from the store with exact ones on a sample of rows."""
    from rich.console import Console
    from rich.table import Table

    from biasdiff.pipeline.features import check_features

    chosen = _settings(
        config,
        changes,
        side=train_side,
        projection=projection,
        dimensions=dimensions,
        dtype=dtype,
        checkpoint=checkpoint,
        fraction=fraction,
        text_column=text_column,
        seed=seed,
    )
    found = check_features(features, model, train, probe, adapter, sample=sample, config=chosen)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Estimator")
    for heading in ("Pearson", "Spearman", "Same selection", "Rows"):
        table.add_column(heading, justify="right")
    for name, one in found.items():
        table.add_row(
            name,
            f"{one['pearson']:.4f}",
            f"{one['spearman']:.4f}",
            f"{100 * one['overlap']:.1f} % of {one['selected']:.0f}",
            f"{one['rows']:.0f}",
        )
    Console().print(table)
