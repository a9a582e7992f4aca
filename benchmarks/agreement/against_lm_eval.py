"""CrowS-Pairs by biasdiff and by lm-evaluation-harness: same values, and how long each takes.

Makes a virtual environment of its own, installs lm-eval beside biasdiff, and runs itself in it.
There the harness's own task ``crows_pairs_english`` is given the original file instead of its
revised translation set, so that both score the same sentences with one loaded model. Exits with 1
where a log-likelihood differs by more than 1e-3 nats or the shares of preferred stereotypes differ.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import gc
import importlib.metadata
import io
import logging
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BATCH_SIZES = (1, 8, 16, 32, 64)
TOLERANCE = 1e-3
TARGET_COST = 1.3
TASK = """\
include: {original}
task: crows_pairs_original_file
dataset_path: csv
dataset_name: null
dataset_kwargs:
  data_files: {data}
test_split: train
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / "build/lm-eval", help="made if absent")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=None, help="pairs, the first ones; default all")
    parser.add_argument("--tune-rows", type=int, default=100, help="pairs to try batch sizes on")
    parser.add_argument("--cost-rows", type=int, default=400, help="pairs for the cost of scoring")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--max-tokens", type=int, help="biasdiff's token budget; its default")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return measure(options)
    python = prepare(options.venv)
    return subprocess.run([python, __file__, "--inside", *sys.argv[1:]], check=False).returncode


def prepare(folder: Path) -> Path:
    """Return the interpreter of an environment with biasdiff and lm-eval, making it if need be."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / ".ready"
    if not ready.is_file():
        print(f"installing lm-eval and biasdiff into {folder}", flush=True)
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "-e", f"{ROOT}[lm-eval]"], check=True)
        ready.touch()
    return python


def measure(options: argparse.Namespace) -> int:
    os.environ["HF_DATASETS_CACHE"] = str(options.venv.resolve() / "datasets")
    import torch

    from biasdiff.config import ModelConfig
    from biasdiff.data.batching import make_batch, token_budget_batches
    from biasdiff.data.encoding import encode_text
    from biasdiff.evaluation.benchmark import Subject
    from biasdiff.evaluation.crows_pairs import load_crows_pairs
    from biasdiff.evaluation.stereotype_preference import preference_metrics, score_pairs
    from biasdiff.models.loading import context_length, load_model, load_tokenizer, resolve_model
    from biasdiff.training import token_scores

    logging.disable(logging.WARNING)
    max_tokens = options.max_tokens or ModelConfig().max_tokens
    torch.set_num_threads(options.threads)
    source = resolve_model(options.model)
    model, tokenizer = load_model(source), load_tokenizer(source)
    pairs = load_crows_pairs()[: options.rows]
    subject = Subject(model, tokenizer, context_length(model, tokenizer), max_tokens)
    print(
        f"{options.model}, {len(pairs)} pairs, batches of {max_tokens} tokens, "
        f"{options.threads} threads, torch "
        f"{torch.__version__}, lm-eval {importlib.metadata.version('lm-eval')}; {load()}"
    )

    samples, theirs = harness_results(model, tokenizer, subject.max_length, options)
    frame = score_pairs(subject, pairs)
    ours = preference_metrics(frame)["metric"].value
    agrees = compare(frame, samples, pairs, ours, theirs)

    requests = harness_requests(samples)
    batch_size, tried = fastest_batch_size(model, tokenizer, requests, options.tune_rows)
    shown = ", ".join(f"{size}: {seconds:.2f} s" for size, seconds in tried.items())
    print(f"lm-eval's batch size on {min(options.tune_rows, len(pairs))} pairs: {shown}")

    harness = harness_model(model, tokenizer, subject.max_length, batch_size)
    seconds = Seconds(
        {
            "lm-eval": lambda: harness.loglikelihood(requests, disable_tqdm=True),
            "biasdiff": lambda: score_pairs(subject, pairs),
        },
        options.rounds,
    )
    print(f"{len(pairs)} pairs, median of {options.rounds} alternated rounds:")
    seconds.show()
    print(f"lm-eval (batch {batch_size}) / biasdiff: {seconds.ratio('lm-eval', 'biasdiff')}")

    part = pairs[: options.cost_rows]
    encodings = [encode_text(tokenizer, s) for p in part for s in (p.sent_more, p.sent_less)]
    groups = token_budget_batches(list(map(len, encodings)), max_tokens=max_tokens)
    batches = [make_batch([encodings[i] for i in group]) for group in groups]
    for batch in batches:
        del batch["labels"]
    worth_sharing = token_scores.WORTH_SHARING

    def plain() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(**batch, use_cache=False)

    def scored_plainly() -> None:
        token_scores.WORTH_SHARING = 2.0  # no share of tokens can be worth it
        try:
            score_pairs(subject, part)
        finally:
            token_scores.WORTH_SHARING = worth_sharing

    seconds = Seconds(
        {
            "one plain forward": plain,
            "all variants": scored_plainly,
            "all variants, beginnings shared": lambda: score_pairs(subject, part),
        },
        options.rounds,
    )
    print(f"{len(part)} pairs, {sum(map(len, encodings))} tokens in {len(batches)} batches:")
    seconds.show()
    for name in ("all variants", "all variants, beginnings shared"):
        cost = seconds.ratio(name, "one plain forward")
        print(f"cost of {name} / one plain forward: {cost} (target: below {TARGET_COST})")
    print(load())
    return 0 if agrees else 1


def harness_model(model: Any, tokenizer: Any, max_length: int, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),  # the harness sets a padding token on it
        max_length=max_length,
        batch_size=batch_size,
    )


def harness_results(
    model: Any, tokenizer: Any, max_length: int, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], float]:
    """Return the harness's samples and its pct_stereotype, a share, on the original file."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from biasdiff.evaluation.crows_pairs import crows_pairs_file

    original = Path(lm_eval.__file__).parent / "tasks/crows_pairs/crows_pairs_english.yaml"
    folder = options.venv / "tasks"
    folder.mkdir(exist_ok=True)
    written = TASK.format(original=original, data=crows_pairs_file().resolve())
    (folder / "crows_pairs_original_file.yaml").write_text(written)
    with contextlib.redirect_stderr(io.StringIO()):  # bars
        results = lm_eval.simple_evaluate(
            model=harness_model(model, tokenizer, max_length, 8),
            tasks=["crows_pairs_original_file"],
            limit=options.rows,
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        )
    figures = results["results"]["crows_pairs_original_file"]
    samples = results["samples"]["crows_pairs_original_file"]
    return sorted(samples, key=lambda s: s["doc_id"]), float(figures["pct_stereotype,none"])


def harness_requests(samples: Sequence[dict[str, Any]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    arguments = [tuple(pair) for sample in samples for pair in sample["arguments"]]
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(arguments)]


def fastest_batch_size(
    model: Any, tokenizer: Any, requests: Sequence[Any], rows: int
) -> tuple[int, dict[int, float]]:
    """Return the harness's fastest batch size on the first rows, and the seconds of each."""
    from biasdiff.models.loading import context_length

    part = list(requests[: 2 * rows])
    seconds = {}
    for size in BATCH_SIZES:
        harness = harness_model(model, tokenizer, context_length(model, tokenizer), size)
        function = functools.partial(harness.loglikelihood, part, disable_tqdm=True)
        seconds[size] = min(timed(function), timed(function))
    return min(seconds, key=seconds.__getitem__), seconds


def compare(
    frame: Any, samples: Sequence[dict[str, Any]], pairs: Sequence[Any], ours: float, theirs: float
) -> bool:
    """Print how far both agree and return whether they do."""
    import numpy as np

    texts = [[continuation for _, continuation in sample["arguments"]] for sample in samples]
    read = sum(t == [p.sent_more, p.sent_less] for t, p in zip(texts, pairs, strict=True))
    print(f"sentences read alike: {read} of {len(pairs)} pairs")
    likelihoods = np.array([[float(answer[0]) for answer in s["filtered_resps"]] for s in samples])
    apart = np.abs(frame[["sum_more", "sum_less"]].to_numpy() - likelihoods)
    print(
        f"log-likelihoods of {apart.size} sentences: largest difference {apart.max():.2e}, "
        f"median {np.median(apart):.2e} nats"
    )
    preferred = likelihoods[:, 0] > likelihoods[:, 1]
    other = int((preferred != (frame["margin"] > 0).to_numpy()).sum())
    print(
        f"pct_stereotype: lm-eval {100 * theirs:.4f}, biasdiff {ours:.4f}; "
        f"{other} pairs decided otherwise"
    )
    agrees = bool(apart.max() <= TOLERANCE and abs(100 * theirs - ours) < 1e-9)
    print("AGREES" if agrees else "DOES NOT AGREE")
    return agrees


class Seconds:
    """Seconds of several passes, alternated: on the clock, and of the processor.

    Where other work shares the machine the processor's are the fairer ones, with one thread; with
    more, those that wait for another count too.
    """

    def __init__(self, passes: Mapping[str, Callable[[], object]], rounds: int) -> None:
        self.wall: dict[str, list[float]] = {name: [] for name in passes}
        self.processor: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(rounds):
            for name, function in passes.items():
                used = time.process_time()
                self.wall[name].append(timed(function))
                self.processor[name].append(time.process_time() - used)

    def show(self) -> None:
        """Print the medians."""
        for name in self.wall:
            wall, processor = (statistics.median(x[name]) for x in (self.wall, self.processor))
            print(f"  {name:<34}{wall:8.2f} s, processor {processor:8.2f} s", flush=True)

    def ratio(self, above: str, below: str) -> str:
        """Return the medians of the ratios of the rounds, and their ranges."""
        shown = []
        for seconds in (self.wall, self.processor):
            found = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
            shown.append(f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        return f"{shown[0]}, processor {shown[1]}"


def timed(function: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def load() -> str:
    """Return how busy the machine is, where that can be known."""
    if not hasattr(os, "getloadavg"):
        return "load unknown"
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
