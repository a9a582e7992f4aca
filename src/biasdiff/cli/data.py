"""The verb ``biasdiff data``: corpora by name, mixtures, probe sets made of corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from biasdiff.cli.errors import guarded
from biasdiff.cli.options import Debug, Quiet

app = typer.Typer(
    help="Public corpora, mixtures with ground truth, probe sets made of corpora.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Name = Annotated[str, typer.Argument(help="Corpus; 'biasdiff data list' shows them.")]
OutFile = Annotated[Path, typer.Option(help="File to write.")]
ProbeFile = Annotated[
    Path | None,
    typer.Option(help="Probe pairs to keep out. [default: the shipped reference draw]"),
]


@app.command("list")
@guarded
def list_corpora(debug: Debug = False) -> None:
    """List corpora and mixtures, and which corpora are at hand."""
    from rich.console import Console
    from rich.table import Table

    from biasdiff.data.mixtures.recipes import MIXTURES
    from biasdiff.data.sources.finding import find, find_files
    from biasdiff.data.sources.registry import CORPORA

    corpora = Table("corpus", "title", "licence", "at hand", title="Corpora", title_justify="left")
    for name, corpus in CORPORA.items():
        files = find_files(corpus)
        places = {find(f)[0] for f in corpus.files if files and f.path in files}
        mark = " [bold]non-commercial[/bold]" if corpus.non_commercial else ""
        corpora.add_row(
            name, corpus.title, corpus.licence + mark, ", ".join(sorted(places)) or "no"
        )
    mixtures = Table("mixture", "what", title="Mixtures", title_justify="left")
    for name, recipe in MIXTURES.items():
        mixtures.add_row(name, recipe.what)
    Console().print(corpora, mixtures)


@app.command()
@guarded
def show(name: Name, debug: Debug = False) -> None:
    """Show a corpus: licence, what counts as biased, files, and its counts if it is at hand."""
    from rich.console import Console

    from biasdiff.pipeline.mixtures import describe_corpus

    console = Console(highlight=False, soft_wrap=True)
    for line in describe_corpus(name):
        console.print(line, markup=False)


@app.command()
@guarded
def fetch(name: Name, quiet: Quiet = False, debug: Debug = False) -> None:
    """Download a corpus into the cache, unless it is at hand."""
    from biasdiff.data.sources.finding import fetch as verb
    from biasdiff.data.sources.registry import corpus_named

    for path in verb(corpus_named(name)).values():
        typer.echo(path)


@app.command()
@guarded
def build(
    mixture: Annotated[str, typer.Argument(help="Mixture, or a YAML file with a recipe.")],
    out: Annotated[Path, typer.Option(help="Train set to write: .jsonl, .csv or .parquet.")],
    size: Annotated[int | None, typer.Option(min=2, help="Rows. [default: 3000]")] = None,
    biased_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of biased rows. [default: recipe's]")
    ] = None,
    stratify: Annotated[
        Literal["proportional", "equal"], typer.Option(help="Bias types: as they come, or evenly.")
    ] = "proportional",
    disjoint: Annotated[
        Literal["sentence", "stereotype"], typer.Option(help="What is kept apart from the probe.")
    ] = "stereotype",
    probe: ProbeFile = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every draw. [default: 0]")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw a train set with ground truth, keep evaluation data out of it, and write its card."""
    from rich.console import Console
    from rich.markdown import Markdown

    from biasdiff.data.mixtures.card import card_markdown
    from biasdiff.pipeline.mixtures import build_to_file

    found = build_to_file(
        mixture,
        out,
        size=size,
        biased_share=biased_share,
        equal_types=stratify == "equal",
        disjoint=disjoint,
        probe=probe,
        seed=seed,
    )
    Console().print(Markdown(card_markdown(found)))
    typer.echo(out)


@app.command()
@guarded
def build_probe(
    name: Annotated[
        str,
        typer.Argument(
            help="crows_pairs, stereoset, wino, seat, balance, or a draw of the shipped pairs: "
            "reference, validation, test, rest."
        ),
    ],
    out: Annotated[Path, typer.Option(help="CSV to write, in CrowS-Pairs columns.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the mixture, for balance.")] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a corpus, or a draw of the shipped pairs, as a probe set."""
    from biasdiff.data.probe import save_probe_pairs
    from biasdiff.data.probe_sources import probe_from

    pairs = probe_from(name, seed=seed)
    save_probe_pairs(pairs, out)
    lonely = sum(not pair.sent_less for pair in pairs)
    typer.echo(f"{len(pairs)} rows, {len(pairs) - lonely} with a twin, {out}")
