"""All benchmarks by name; a new one is a new file and a new line here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from biasdiff.errors import ConfigError, nearest
from biasdiff.evaluation import (
    bbq,
    cloze,
    crows_pairs,
    evaluation_pairs,
    generation,
    lm_eval_harness,
    multiple_choice,
    perplexity,
    seat,
    stereoset,
    winobias,
    winogender,
)
from biasdiff.evaluation.benchmark import Benchmark

_ALL: tuple[Benchmark, ...] = (
    evaluation_pairs.BENCHMARK,
    perplexity.PERPLEXITY,
    crows_pairs.BENCHMARK,
    stereoset.BENCHMARK,
    seat.BENCHMARK,
    winobias.BENCHMARK,
    winogender.BENCHMARK,
    bbq.BENCHMARK,
    multiple_choice.BENCHMARK,
    perplexity.WIKITEXT2,
    cloze.BENCHMARK,
    generation.BENCHMARK,
    lm_eval_harness.BENCHMARK,
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
ALL, CORE = "all", "core"


def require_known(names: Iterable[str]) -> None:
    """Refuse settings of a benchmark that there is not.

    Raises:
        ConfigError: The nearest name is given.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise ConfigError(
                f"no benchmark is called {name!r}{nearest(name, BENCHMARKS)}",
                expected=f"some of {', '.join(BENCHMARKS)}",
                remedy="mend evaluate.options",
            )


def chosen_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """Return benchmarks by name, in the registry's order.

    Args:
        names: Names, or ``core``, or ``all`` (every one that needs no optional extra).

    Raises:
        ConfigError: If there is none of a name; the nearest is named.
    """
    wanted: set[str] = set()
    for name in names:
        if name == ALL:
            wanted |= {n for n, benchmark in BENCHMARKS.items() if not benchmark.extra}
        elif name == CORE:
            wanted |= {n for n, benchmark in BENCHMARKS.items() if benchmark.core}
        elif name in BENCHMARKS:
            wanted.add(name)
        else:
            known = (*BENCHMARKS, CORE, ALL)
            raise ConfigError(
                f"no benchmark is called {name!r}{nearest(name, known)}",
                expected=f"some of {', '.join(known)}",
                remedy="mend --bench",
            )
    return [benchmark for name, benchmark in BENCHMARKS.items() if name in wanted]
