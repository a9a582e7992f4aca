"""biasdiff itself, in the same frame as its peers."""

from __future__ import annotations

from typing import Any

import torch
from peer import Job, Pass, Setting, Variant, main, saved_name
from torch import Tensor

from biasdiff.attribution.gradients import backward_example_losses, per_example_gradients
from biasdiff.attribution.probe_directions import ProbeDirection
from biasdiff.attribution.scoring import Comparison, score_batch
from biasdiff.attribution.train_sides import TRAIN_SIDES
from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.functional.losses import IGNORED
from biasdiff.models.lora import lora_parameters
from biasdiff.training.checkpoints import AdamState

SETTINGS = [{"tokens": tokens} for tokens in (256, 512, 1024, 2048)]


def grouped(job: Job, setting: Setting) -> list[tuple[list[int], list[Encoding]]]:
    """Return the batches under a token budget, and the numbers of their sentences."""
    encodings = [Encoding(s, [IGNORED, *s[1:]]) for s in job.train]
    groups = token_budget_batches([len(e) for e in encodings], max_tokens=setting["tokens"])
    return [(group, [encodings[i] for i in group]) for group in groups]


def scored(job: Job, model: Any, setting: Setting, side: str) -> Pass:
    """Cosines with the probe vector, exact, in one pass."""
    probe, first, second = (
        {name: tensors[saved_name(name)] for name, _ in lora_parameters(model)}
        for tensors in map(job.tensors, ("probe", "exp_avg", "exp_avg_sq"))
    )
    probe = {name: vector.reshape(-1, 1) for name, vector in probe.items()}
    adam = AdamState(first, second, 100, (0.9, 0.999), 1e-8)
    comparison = Comparison(TRAIN_SIDES[side](adam), ProbeDirection(probe, ("all",), (1,)))
    groups = grouped(job, setting)

    def run() -> Tensor:
        scores = torch.empty(len(job.train))
        for members, encodings in groups:
            _, found = score_batch(model, make_batch(encodings), {"one": comparison})
            scores[members] = found["one"][:, 0]
        return scores

    return run


def gradients(job: Job, model: Any, setting: Setting) -> Pass:
    """All per-example gradients, kept in memory."""
    sizes = {name: weight.numel() for name, weight in lora_parameters(model)}
    groups = grouped(job, setting)

    def run() -> Tensor:
        kept = torch.empty(len(job.train), sum(sizes.values()))
        places = dict(zip(sizes, kept.split(list(sizes.values()), dim=1), strict=True))
        for members, encodings in groups:

            def keep(name: str, values: Tensor, members: list[int] = members) -> None:
                places[name][members] = values

            with per_example_gradients(model, keep):
                backward_example_losses(model, make_batch(encodings))
        return kept

    return run


def scores(job: Job, model: Any, setting: Setting) -> Pass:
    return scored(job, model, setting, "sgd")


def less(job: Job, model: Any, setting: Setting) -> Pass:
    return scored(job, model, setting, "less")


if __name__ == "__main__":
    main(
        {
            "scores": Variant(scores, SETTINGS, "cosines"),
            "less": Variant(less, SETTINGS, "less"),
            "gradients": Variant(gradients, SETTINGS, "gradients"),
        }
    )
