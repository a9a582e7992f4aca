"""Quality of the shipped pairs: what models prefer, and whether the pairs of a type agree.

Preference: share of pairs whose stereotype sentence the model finds more probable, per bias type,
with 95 % intervals (pairs of one stereotype are resampled together). Coherence: mean cosine of the
gradients of two different pairs of a type, of stereotype sentences and of the differences between
the two sides, under a LoRA adapter with a small random B; beside it the same over pairs drawn from
all types, which is what a type's own coherence has to beat.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from biasdiff.attribution.gradients import per_example_gradients
from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.draws import shipped_draw
from biasdiff.data.encoding import encode_text
from biasdiff.data.probe import ProbePair
from biasdiff.data.shipped_sets import shipped_pairs
from biasdiff.evaluation.benchmark import Subject
from biasdiff.evaluation.stereotype_preference import score_pairs
from biasdiff.models.loading import load_model, load_tokenizer, resolve_model
from biasdiff.models.lora import LoraSettings, add_adapter, lora_parameters
from biasdiff.training.target_losses import backward_example_losses

RESAMPLES = 2000
B_STD = 0.01
LONGEST = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="smollm2-135m, a folder or a .gguf file")
    parser.add_argument("--draw", default="all", help="all, reference, validation, test or rest")
    parser.add_argument("--max-tokens", type=int, default=768)
    parser.add_argument("--no-coherence", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pairs = shipped_pairs() if options.draw == "all" else shipped_draw(options.draw)
    for name in options.models:
        source = resolve_model(name)
        model, tokenizer = load_model(source), load_tokenizer(source)
        print(f"\n{name}: {len(pairs)} pairs ({options.draw})")
        preference(model, tokenizer, pairs, options.max_tokens)
        if not options.no_coherence:
            coherence(model, tokenizer, shipped_draw("reference"), options.max_tokens)


def preference(
    model: torch.nn.Module, tokenizer: object, pairs: Sequence[ProbePair], max_tokens: int
) -> None:
    """Print a line per bias type: pairs, preference with its interval, mean margin likewise."""
    started = time.perf_counter()
    scores = score_pairs(Subject(model, tokenizer, LONGEST, max_tokens), pairs)
    print(f"  scored in {time.perf_counter() - started:.0f} s")
    print(f"  {'type':<22}{'pairs':>6}  preferred % [95 %]        margin nats [95 %]")
    groups = [("all", scores), *scores.groupby("bias_type")]
    groups += [(f"({name})", part) for name, part in scores.groupby("direction")]
    for name, part in groups:
        hits = 100.0 * (part["margin"] > 0).to_numpy()
        by = part["stereotype_id"].to_numpy()
        shown = [clustered(values, by) for values in (hits, part["margin"].to_numpy())]
        cells = "   ".join(f"{mean:6.2f} [{low:6.2f}, {high:6.2f}]" for mean, low, high in shown)
        print(f"  {name:<22}{len(part):>6}  {cells}")


def clustered(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float, float]:
    """Return the mean and the bootstrap interval that resamples whole clusters."""
    _, index = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    draw = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draw].sum(1) / counts[draw].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def coherence(
    model: torch.nn.Module, tokenizer: object, pairs: Sequence[ProbePair], max_tokens: int
) -> None:
    """Print mean pairwise cosines of unit gradients g_i: (‖Σ g_i‖² - n) / (n (n - 1))."""
    adapted = add_adapter(model, LoraSettings(dropout=0.0), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in lora_parameters(adapted):
            if name.endswith("lora_B.weight"):
                weight.normal_(std=B_STD, generator=generator)
    sums: dict[tuple[str, str], Tensor] = {}
    counts: dict[str, int] = {}
    more = [encode_text(tokenizer, p.sent_more) for p in pairs]
    less = [encode_text(tokenizer, p.sent_less) for p in pairs]
    lengths = [2 * max(len(a), len(b)) for a, b in zip(more, less, strict=True)]
    for members in token_budget_batches(lengths, max_tokens=max_tokens, max_examples=32):
        gradients: dict[str, Tensor] = {}
        with per_example_gradients(adapted, gradients.__setitem__):
            chosen = [more[i] for i in members] + [less[i] for i in members]
            backward_example_losses(adapted, make_batch(chosen))
        whole = torch.cat([gradients[name] for name in sorted(gradients)], 1)
        sides = {"stereotype": whole[: len(members)]}
        sides["difference"] = whole[: len(members)] - whole[len(members) :]
        for kind, vectors in sides.items():
            units = torch.nn.functional.normalize(vectors, dim=1)
            for row, index in enumerate(members):
                for group in (pairs[index].bias_type, "all types"):
                    total = sums.setdefault((kind, group), torch.zeros(units.shape[1]))
                    total += units[row]
        for index in members:
            for group in (pairs[index].bias_type, "all types"):
                counts[group] = counts.get(group, 0) + 1
    print(f"  coherence on the reference draw ({len(pairs)} pairs)")
    print(f"  {'type':<22}{'pairs':>6}  cos of stereotypes   cos of differences")
    for group, n in sorted(counts.items()):
        cosines = [
            (float(sums[kind, group].double().square().sum()) - n) / (n * (n - 1))
            for kind in ("stereotype", "difference")
        ]
        print(f"  {group:<22}{n:>6}  {cosines[0]:18.4f}   {cosines[1]:18.4f}")


if __name__ == "__main__":
    main()
