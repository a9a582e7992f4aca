"""Throughput of exact attribution against the plain LoRA forward and backward pass.

Both run on the same batches of SmolLM2-135M and the shipped sentences, in one process,
alternating, and the ratio of each round is taken; the median over rounds is what is reported.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from biasdiff.attribution.features.building import build_store
from biasdiff.attribution.features.manifest import MADE_FROM
from biasdiff.attribution.material import EncodedProbes
from biasdiff.attribution.paired_adapters import SIDES, Layers, paired_adapters
from biasdiff.attribution.probe_directions import CONTRAST, PLAIN, probe_directions
from biasdiff.attribution.scoring import Comparison, Pass, score_batch
from biasdiff.attribution.split_forward import SplitForward
from biasdiff.attribution.train_sides import TRAIN_SIDES, TrainSide
from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import encode_text
from biasdiff.data.shipped_mixture import shipped_mixture
from biasdiff.functional.projection import make_projection
from biasdiff.models.loading import load_model, load_tokenizer, resolve_model
from biasdiff.models.lora import LoraSettings, add_adapter, lora_parameters
from biasdiff.training.checkpoints import AdamState
from biasdiff.training.warmup import token_mean_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=512, help="token budget of a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="PASS", help="passes to measure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    source = resolve_model("smollm2-135m")
    tokenizer = load_tokenizer(source)
    model = add_adapter(load_model(source), LoraSettings(dropout=0.0), seed=0)
    with torch.no_grad():
        for name, weight in lora_parameters(model):
            if name.endswith("lora_B.weight"):
                weight.normal_(std=0.01)
    data = shipped_mixture(
        size=options.examples,
        biased_share=0.3,
        probe_pairs=18,
        evaluation_pairs=9,
        held_out_texts=1,
        seed=0,
    )
    encodings = [encode_text(tokenizer, e.text or "") for e in data.train]
    groups = token_budget_batches([len(e) for e in encodings], max_tokens=options.max_tokens)
    batches = [make_batch([encodings[i] for i in group]) for group in groups]
    tokens = sum(map(len, encodings))

    probes = EncodedProbes(
        [encode_text(tokenizer, p.sent_more) for p in data.probe],
        [encode_text(tokenizer, p.sent_less) for p in data.probe],
        [p.bias_type for p in data.probe],
        [str(p.row) for p in data.probe],
    )
    directions = probe_directions(
        model, probes, kinds=[PLAIN, CONTRAST], max_tokens=options.max_tokens
    )
    shapes = {name: weight.shape for name, weight in lora_parameters(model)}
    adam = AdamState(
        exp_avg={n: 1e-3 * torch.randn(s) for n, s in shapes.items()},
        exp_avg_sq={n: 1e-6 * torch.rand(s) for n, s in shapes.items()},
        step=100,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    contrast = Comparison(TRAIN_SIDES["sgd"](None), directions[CONTRAST])
    less = Comparison(TRAIN_SIDES["less"](adam), directions[PLAIN])

    def plain() -> None:
        model.train()
        for batch in batches:
            token_mean_loss(model, batch, None).backward()
            model.zero_grad(set_to_none=True)

    def attribution(comparisons: dict[str, Comparison]) -> Callable[[], None]:
        def score() -> None:
            for batch in batches:
                score_batch(model, batch, comparisons)

        return score

    def stored(side: TrainSide) -> Callable[[], None]:
        sizes = {name: shape.numel() for name, shape in shapes.items()}
        projection = make_projection("sjlt", sizes, k=8192)

        def build() -> None:
            with tempfile.TemporaryDirectory() as folder:
                build_store(
                    Path(folder) / "store",
                    dict.fromkeys(MADE_FROM, "benchmark"),
                    model,
                    encodings,
                    [str(i) for i in range(len(encodings))],
                    side,
                    projection,
                    Pass(max_tokens=options.max_tokens),
                )

        return build

    def adapter_contrast(layers: Layers) -> Callable[[], None]:
        adapters = paired_adapters(model, layers=layers)
        base = model.get_base_model()
        forward = SplitForward(base, adapters.switch, SIDES, shared=adapters.first_layer)

        def score() -> None:
            with adapters.attached(model):
                for batch in batches:
                    forward.mean_log_probs(batch)

        return score

    passes = {
        "contrast": attribution({"contrast": contrast}),
        "less": attribution({"less": less}),
        "both at once": attribution({"contrast": contrast, "less": less}),
        "features, sgd, sjlt 8192": stored(contrast.train_side),
        "features, less, sjlt 8192": stored(less.train_side),
        "adapter_contrast, all": adapter_contrast("all"),
        "adapter_contrast, upper": adapter_contrast("upper"),
    }
    if options.only:
        passes = {name: passes[name] for name in passes if name in options.only}
    for function in (plain, *passes.values()):
        function()
    seconds: dict[str, list[float]] = {"plain": [], **{name: [] for name in passes}}
    ratios: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(options.rounds):
        for name, function in passes.items():
            reference, measured = _timed(plain), _timed(function)
            seconds["plain"].append(reference)
            seconds[name].append(measured)
            ratios[name].append(reference / measured)
    print(f"{len(encodings)} sentences, {tokens} tokens, {len(batches)} batches, ", end="")
    print(f"{options.threads} threads, median of {options.rounds} rounds")
    print(
        f"{'plain forward+backward':<28}{tokens / statistics.median(seconds['plain']):8.0f} tok/s"
    )
    for name in passes:
        rate = tokens / statistics.median(seconds[name])
        low, high = min(ratios[name]), max(ratios[name])
        middle = statistics.median(ratios[name])
        print(f"{name:<28}{rate:8.0f} tok/s   ratio {middle:.3f} ({low:.3f} to {high:.3f})")


def _timed(function: Callable[[], None]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
