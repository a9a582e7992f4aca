"""The verb ``biasdiff probe``: make, check, read and complete a probe set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from biasdiff.cli.errors import guarded
from biasdiff.cli.options import Debug, Quiet

app = typer.Typer(
    help="Make a probe set of your own: generate, validate, review, augment.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
File = Annotated[
    str, typer.Argument(metavar="FILE", help="CSV in CrowS-Pairs columns, or 'shipped'.")
]
LexiconFile = Annotated[
    Path | None,
    typer.Option("--lexicon", help="CSV of group words: bias_type, word, swap. [default: shipped]"),
]
INVALID = 1


@app.command()
@guarded
def generate(
    endpoint: Annotated[str, typer.Option(help="OpenAI-compatible address, http://host:port/v1.")],
    model: Annotated[str, typer.Option(help="Name of the model there.")],
    out: Annotated[Path, typer.Option(help="CSV to write; replies are kept beside it.")],
    n: Annotated[int, typer.Option(help="Pairs wanted.")] = 500,
    types: Annotated[
        str | None, typer.Option(help="Bias types, separated by commas. [default: all nine]")
    ] = None,
    avoid: Annotated[
        list[Path] | None,
        typer.Option(help="Probe file or train set whose sentences may not be repeated."),
    ] = None,
    per_request: Annotated[int, typer.Option(help="Entries asked for at once.")] = 10,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.")] = 4,
    max_requests: Annotated[
        int | None, typer.Option(help="Stop after so many. [default: ten times the least]")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of sampling.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 1024,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for an answer.")] = 120.0,
    attempts: Annotated[int, typer.Option(min=1, help="Tries of one request.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Of the examples shown.")] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Ask a chat model for stereotype pairs; the key comes from BIASDIFF_API_KEY."""
    from biasdiff.probing.endpoint import Endpoint
    from biasdiff.probing.generation import Generation, Request
    from biasdiff.probing.protected import sentences_to_avoid
    from biasdiff.probing.validation import BIAS_TYPES

    named = tuple(name.strip() for name in (types or "").split(",") if name.strip())
    run = Generation(
        Endpoint(endpoint, model, temperature, max_tokens, timeout, attempts),
        Request(n, named or BIAS_TYPES, per_request, seed, concurrency, max_requests),
        out,
        sentences_to_avoid(avoid or []),
    )
    harvest = run.run()
    typer.echo(
        f"{len(harvest.pairs)} of {n} pairs from {harvest.replies} replies, "
        f"{len(harvest.rejected)} entries rejected"
    )
    for reason, count in harvest.reasons().most_common():
        typer.echo(f"  {count:5d}  {reason}")
    typer.echo(f"pairs:    {run.out}\nrejected: {run.rejected_file}\nreplies:  {run.replies_file}")
    if len(harvest.pairs) < n:
        typer.echo(f"fewer than {n}: raise --max-requests, or ask another model")


@app.command()
@guarded
def validate(
    file: File,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if any pair fails.")
    ] = False,
    lexicon: LexiconFile = None,
    show: Annotated[int, typer.Option(min=0, help="Failures printed at most.")] = 50,
    debug: Debug = False,
) -> None:
    """Check pairs against the rules, and print what fails and why."""
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    from biasdiff.probing.lexicon import load_lexicon
    from biasdiff.probing.protected import benchmark_sentences
    from biasdiff.probing.reading import read_probe
    from biasdiff.probing.summary import counts
    from biasdiff.probing.validation import PAIR_RULES, SET_RULES
    from biasdiff.probing.validation import validate as verb

    pairs = read_probe(file)
    benchmarks, absent = benchmark_sentences()
    failures = verb(pairs, load_lexicon(lexicon), benchmarks=benchmarks)
    console = Console(highlight=False)
    table = Table("type", "pairs", "stereotypes", "antistereo", "mean words")
    for kind in counts(pairs):
        table.add_row(
            kind.bias_type,
            str(kind.pairs),
            str(kind.stereotypes),
            f"{kind.antistereo:.0%}",
            f"{kind.words:.1f}",
        )
    console.print(table)
    by_rule = Counter(failure.rule for failure in failures)
    rules = Table("rule", "failures")
    for rule in (*PAIR_RULES, *SET_RULES, *(("benchmark",) if benchmarks else ())):
        rules.add_row(rule, str(by_rule[rule]))
    console.print(rules)
    for failure in failures[:show]:
        name = f" {failure.id}" if failure.id else ""
        line = f"row {failure.row}{name}: {failure.rule}: {failure.reason}"
        console.print(line, markup=False, soft_wrap=True)
    if len(failures) > show:
        console.print(f"... and {len(failures) - show} more; --show prints them")
    for benchmark in absent:
        console.print(f"not compared with {benchmark}: 'biasdiff data fetch {benchmark}' has it")
    rows = len({failure.row for failure in failures})
    console.print(f"{rows} of {len(pairs)} pairs fail")
    if strict and failures:
        raise typer.Exit(INVALID)


@app.command()
@guarded
def review(
    file: File,
    out: Annotated[
        Path | None, typer.Option(help="CSV of accepted pairs. [default: FILE.reviewed.csv]")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Read a random sample of this size only.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample.")] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    lexicon: LexiconFile = None,
    debug: Debug = False,
) -> None:
    """Read pairs one by one on a local page; accept, edit or reject by key."""
    import webbrowser

    from biasdiff.probing.lexicon import load_lexicon
    from biasdiff.probing.reading import drawn, read_probe
    from biasdiff.probing.review import Review, review_server

    pairs = read_probe(file)
    if sample is not None:
        pairs = drawn(pairs, sample, seed=seed)
    default = Path("shipped.csv" if file == "shipped" else file).with_suffix(".reviewed.csv")
    done = Review(pairs, out or default, load_lexicon(lexicon))
    server, address = review_server(done, port=port)
    typer.echo(f"{address}\nCtrl-C ends it; every decision is saved at once.")
    if browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    state = done.state()
    read = state["accepted"] + state["edited"] + state["rejected"]
    typer.echo(
        f"{read} of {state['total']} read: {state['accepted']} accepted, {state['edited']} edited, "
        f"{state['rejected']} rejected; {done.out}"
    )


@app.command()
@guarded
def augment(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Probe CSV, twins missing.")],
    out: Annotated[Path, typer.Option(help="CSV to write.")],
    lexicon: LexiconFile = None,
    debug: Debug = False,
) -> None:
    """Make twins for sentences without one by swapping group words."""
    from biasdiff.data.probe import save_probe_pairs
    from biasdiff.probing.augmentation import augment as verb
    from biasdiff.probing.lexicon import load_lexicon
    from biasdiff.probing.reading import read_probe

    found = verb(read_probe(file), load_lexicon(lexicon))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_probe_pairs(found.pairs, out)
    typer.echo(f"{found.made} twins made, {len(found.pairs)} pairs in {out}")
    if found.left:
        aside = out.with_name(f"{out.stem}.without-twin.csv")
        save_probe_pairs(found.left, aside)
        typer.echo(f"{len(found.left)} sentences hold no word of the lexicon: {aside}")
    typer.echo("a swap may not fit its sentence: read the twins ('biasdiff probe review')")


@app.command("lexicon")
@guarded
def write_lexicon(
    out: Annotated[Path, typer.Option(help="CSV to write.")],
    debug: Debug = False,
) -> None:
    """Write the shipped group words to a file of your own, to edit."""
    from biasdiff.errors import ArtifactError
    from biasdiff.probing.lexicon import load_lexicon, save_lexicon

    if out.exists():
        raise ArtifactError(
            f"{out} exists",
            expected="a new file, lest words of your own be lost",
            remedy="name another --out, or remove it",
        )
    found = load_lexicon()
    out.parent.mkdir(parents=True, exist_ok=True)
    save_lexicon(found, out)
    typer.echo(f"{len(found.words)} words, {out}")
