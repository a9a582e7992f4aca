"""The command ``biasdiff``: one verb per stage, and run, demo and status.

Nothing heavy is imported before a verb runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from biasdiff.cli import data, features, probe
from biasdiff.cli.errors import guarded
from biasdiff.cli.options import (
    Adapter,
    Also,
    Changes,
    ConfigFile,
    Debug,
    Estimator,
    Force,
    Fraction,
    Model,
    OutFolder,
    Probe,
    Quiet,
    RunFolder,
    Seed,
    Strict,
    TextColumn,
    Train,
    TrainSide,
    TrustRemoteCode,
    one_stage_of_run,
    settings,
)

app = typer.Typer(
    name="biasdiff",
    help="Find the training examples that bias a language model, remove their effect, prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.add_typer(probe.app, name="probe")
app.add_typer(features.app, name="features")


def main() -> None:
    """Run the command line; of several processes that were started together, the first speaks."""
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (for as long as the process lives)
    app()


@app.command()
@guarded
def run(
    config: Annotated[Path, typer.Argument(help="YAML settings, for example configs/demo.yaml.")],
    changes: Changes = None,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run all stages, going on where an earlier run stopped."""
    from biasdiff.config import load_config

    _run(load_config(config, changes or []), force)


@app.command()
@guarded
def demo(
    changes: Changes = None,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run the shipped demo on a real model, SmolLM2-135M."""
    from biasdiff.config import load_config
    from biasdiff.configs import DEMO

    _run(load_config(DEMO, changes or []), force)


@app.command()
@guarded
def warmup(
    model: Model = None,
    train: Train = None,
    out: OutFolder = None,
    run: RunFolder = None,
    text_column: TextColumn = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate.")] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Stratified share of the train set, in (0, 1].")
    ] = None,
    seed: Seed = None,
    strict: Strict = False,
    trust_remote_code: TrustRemoteCode = False,
    config: ConfigFile = None,
    changes: Changes = None,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a LoRA adapter on the train set; keep adapter and Adam state of every epoch."""
    if one_stage_of_run(run, "warmup", {"--model": model, "--train": train, "--out": out}, force):
        return
    from biasdiff.pipeline.warmup import warmup as verb

    chosen = settings(
        config,
        changes,
        {
            "warmup.epochs": epochs,
            "warmup.learning_rate": learning_rate,
            "warmup.fraction": fraction,
            "data.text_column": text_column,
            "data.strict": strict or None,
            "model.trust_remote_code": trust_remote_code or None,
            "seed": seed,
        },
    )
    typer.echo(verb(str(model), str(train), str(out), config=chosen, force=force))


@app.command()
@guarded
def attribute(
    model: Model = None,
    train: Train = None,
    probe: Probe = None,
    out: OutFolder = None,
    run: RunFolder = None,
    adapter: Adapter = None,
    store: Annotated[
        Path | None,
        typer.Option("--features", help="Store of 'features build' to score from."),
    ] = None,
    estimator: Estimator = None,
    also: Also = None,
    train_side: TrainSide = None,
    normalize: Annotated[
        Literal["none", "train", "both"] | None, typer.Option(help="Sides of unit length.")
    ] = None,
    aggregate: Annotated[
        Literal["mean", "max"] | None, typer.Option(help="Over probes, or bias types.")
    ] = None,
    checkpoints: Annotated[
        Literal["last", "all"] | None, typer.Option(help="Epochs of the warm-up.")
    ] = None,
    group: Annotated[
        int | None, typer.Option(help="Examples that share the score of their mean gradient.")
    ] = None,
    loss: Annotated[
        Literal["mean", "sum"] | None, typer.Option(help="Over the tokens of an example.")
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(help="lora, all, or a regular expression of names.")
    ] = None,
    explain: Annotated[
        int | None, typer.Option(help="Highest examples to take apart token by token.")
    ] = None,
    fraction: Fraction = None,
    text_column: TextColumn = None,
    seed: Seed = None,
    strict: Strict = False,
    trust_remote_code: TrustRemoteCode = False,
    config: ConfigFile = None,
    changes: Changes = None,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score every train example's influence towards the probe's stereotypes."""
    needed = {"--model": model, "--train": train, "--probe": probe, "--out": out}
    if one_stage_of_run(run, "attribute", needed, force):
        return
    from biasdiff.pipeline.attribute import attribute as verb

    chosen = settings(
        config,
        changes,
        {
            "attribution.estimator": estimator,
            "attribution.also": also.split(",") if also else None,
            "attribution.train_side": train_side,
            "attribution.normalize": normalize,
            "attribution.aggregate": aggregate,
            "attribution.checkpoints": checkpoints,
            "attribution.group": group,
            "attribution.loss": loss,
            "attribution.parameters": parameters,
            "attribution.explain": explain,
            "selection.fraction": fraction,
            "data.text_column": text_column,
            "data.strict": strict or None,
            "model.trust_remote_code": trust_remote_code or None,
            "seed": seed,
        },
    )
    folder = verb(
        str(model),
        str(train),
        str(probe),
        str(out),
        adapter=adapter,
        features=store,
        config=chosen,
        force=force,
    )
    typer.echo(folder / "scores.parquet")


@app.command()
@guarded
def select(
    scores: Annotated[Path | None, typer.Option(help="scores.parquet of attribute.")] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file to write.")] = None,
    run: RunFolder = None,
    fraction: Fraction = None,
    top_k: Annotated[int | None, typer.Option(help="Number to select, instead.")] = None,
    method: Annotated[
        Literal["top", "random"], typer.Option(help="Highest scores, or the random baseline.")
    ] = "top",
    seed: Annotated[int, typer.Option(help="Of the random draw.")] = 0,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Select the most influential train examples."""
    if one_stage_of_run(run, "select", {"--scores": scores, "--out": out}, force):
        return
    from biasdiff.pipeline.select import select as verb

    table = verb(str(scores), str(out), fraction=fraction, top_k=top_k, method=method, seed=seed)
    typer.echo(f"{int(table['selected'].sum())} of {len(table)} selected, {out}")


@app.command()
@guarded
def mitigate(
    model: Model = None,
    adapter: Adapter = None,
    train: Train = None,
    selection: Annotated[Path | None, typer.Option(help="selection.parquet of select.")] = None,
    method: Annotated[str, typer.Option(help="retrain or npo.")] = "retrain",
    out: OutFolder = None,
    run: RunFolder = None,
    text_column: TextColumn = None,
    seed: Seed = None,
    strict: Strict = False,
    trust_remote_code: TrustRemoteCode = False,
    config: ConfigFile = None,
    changes: Changes = None,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take the effect of the selected examples out: retrain without them or unlearn them."""
    needed = {
        "--model": model,
        "--adapter": adapter,
        "--train": train,
        "--selection": selection,
        "--out": out,
    }
    if one_stage_of_run(run, f"mitigate-{method}", needed, force):
        return
    from biasdiff.pipeline.mitigate import mitigate as verb

    chosen = settings(
        config,
        changes,
        {
            "data.text_column": text_column,
            "data.strict": strict or None,
            "model.trust_remote_code": trust_remote_code or None,
            "seed": seed,
        },
    )
    folder = verb(
        str(model),
        str(adapter),
        str(train),
        str(selection),
        str(out),
        method=method,
        config=chosen,
        force=force,
    )
    typer.echo(folder)


@app.command()
@guarded
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder, hub id, .gguf file or smollm2-135m.", metavar="MODEL"),
    ] = None,
    adapter: Adapter = None,
    pairs: Annotated[
        str, typer.Option(help="Evaluation pairs in CrowS-Pairs columns.")
    ] = "shipped",
    texts: Annotated[str, typer.Option(help="Held-out texts for perplexity.")] = "shipped",
    out: Annotated[
        Path | None, typer.Option(help="JSON to write; per-example scores go beside it.")
    ] = None,
    run: RunFolder = None,
    bench: Annotated[
        str | None,
        typer.Option(
            help="Benchmarks by name, separated by commas; core; or all. "
            "[default: stereotype_preference,perplexity]"
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Examples of each benchmark at most.")
    ] = None,
    seed: Seed = None,
    text_column: TextColumn = None,
    trust_remote_code: TrustRemoteCode = False,
    config: ConfigFile = None,
    changes: Changes = None,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure bias and perplexity of any causal language model, or of all models of a run."""
    if one_stage_of_run(run, "evaluate", {"MODEL": model}, force):
        return
    from rich.console import Console

    from biasdiff.pipeline.evaluate import evaluate as verb
    from biasdiff.reporting.terminal import print_evaluation

    chosen = settings(
        config,
        changes,
        {
            "data.text_column": text_column,
            "model.trust_remote_code": trust_remote_code or None,
            "evaluate.benchmarks": _names(bench),
            "evaluate.limit": limit,
            "seed": seed,
        },
    )
    record = verb(str(model), adapter=adapter, pairs=pairs, texts=texts, out=out, config=chosen)
    print_evaluation(record, Console())


@app.command()
@guarded
def compare(
    after: Annotated[Path, typer.Argument(help="JSON of 'biasdiff evaluate --out'.")],
    before: Annotated[Path, typer.Argument(help="JSON of the model to compare with.")],
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    debug: Debug = False,
) -> None:
    """Compare two evaluations example by example, and say what is distinguishable from noise."""
    from rich.console import Console

    from biasdiff.pipeline.compare import compare as verb
    from biasdiff.reporting.comparison import print_comparison

    print_comparison(verb(after, before, out=out), Console())


@app.command()
@guarded
def report(
    run: Annotated[Path, typer.Option(help="Run directory.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the HTML report of a finished run, and print its tables."""
    from rich.console import Console

    from biasdiff.pipeline.report import report as verb
    from biasdiff.reporting.terminal import print_report

    print_report(verb(run, out), Console())
    typer.echo(out)


@app.command()
@guarded
def status(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    debug: Debug = False,
) -> None:
    """Show stage, state, seconds and size of a run."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from biasdiff.pipeline.run import status as verb

    table = Table("stage", "state", "seconds", "size")
    for line in verb(run):
        seconds = "" if line.seconds is None else f"{line.seconds:.1f}"
        table.add_row(line.stage, line.state, seconds, decimal(line.size) if line.size else "")
    Console().print(table)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _run(config: Any, force: bool) -> None:
    from rich.console import Console

    from biasdiff.pipeline.report import REPORT_FILE, RESULTS_FILE
    from biasdiff.pipeline.run import run as verb
    from biasdiff.reporting.terminal import print_report

    print_report(verb(config, force=force), Console())
    folder = Path(config.runs) / config.name / "report"
    typer.echo(f"Results: {folder / RESULTS_FILE}\nReport:  {folder / REPORT_FILE}")
