"""biasdiff itself, in the same frame as its peers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peer import Job, Pass, Setting, Variant, main, saved_name
from torch import Tensor

from biasdiff.attribution.features.projected_rows import ProjectedRows
from biasdiff.attribution.gradients import batch_gradients
from biasdiff.attribution.probe_directions import ProbeDirection
from biasdiff.attribution.scoring import Comparison, score_batch
from biasdiff.attribution.train_sides import TRAIN_SIDES, TrainSide
from biasdiff.data.batching import Batch, make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.functional.losses import IGNORED
from biasdiff.functional.projection import make_projection
from biasdiff.models.lora import lora_parameters
from biasdiff.training.checkpoints import AdamState

SETTINGS = [{"tokens": tokens} for tokens in (256, 512, 1024, 2048)]


def grouped(job: Job, setting: Setting) -> list[tuple[list[int], Batch]]:
    """Return the batches under a token budget, and the numbers of their sentences."""
    encodings = [Encoding(s, [IGNORED, *s[1:]]) for s in job.train]
    groups = token_budget_batches([len(e) for e in encodings], max_tokens=setting["tokens"])
    return [(group, make_batch([encodings[i] for i in group])) for group in groups]


def given(job: Job, model: Any, name: str) -> dict[str, Tensor]:
    """Return a file of the job under our names of the parameters."""
    tensors = job.tensors(name)
    return {parameter: tensors[saved_name(parameter)] for parameter, _ in lora_parameters(model)}


def train_side(job: Job, model: Any, name: str) -> TrainSide:
    first, second = (given(job, model, moment) for moment in ("exp_avg", "exp_avg_sq"))
    return TRAIN_SIDES[name](AdamState(first, second, 100, (0.9, 0.999), 1e-8))


def scored(job: Job, model: Any, setting: Setting, *, side: str) -> Pass:
    """Cosines with the probe vector, exact, in one pass, nothing kept."""
    probe = {name: v.reshape(-1, 1) for name, v in given(job, model, "probe").items()}
    comparison = Comparison(train_side(job, model, side), ProbeDirection(probe, ("all",), (1,)))
    groups = grouped(job, setting)

    def run() -> Tensor:
        scores = torch.empty(len(job.train))
        for members, batch in groups:
            _, found = score_batch(model, batch, {"one": comparison})
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
        for members, batch in groups:

            def keep(name: str, values: Tensor, members: list[int] = members) -> None:
                places[name][members] = values

            batch_gradients(model, batch, keep)
        return kept

    return run


def projected(job: Job, model: Any, setting: Setting, *, side: str, kind: Any) -> Pass:
    """Projected train directions, kept in memory; the sparse plans are made in the warm-up."""
    direction = train_side(job, model, side)
    sizes = {name: weight.numel() for name, weight in lora_parameters(model)}
    projection = make_projection(kind, sizes, k=job.projection)
    groups = grouped(job, setting)
    order = torch.tensor([i for members, _ in groups for i in members])

    def run() -> Tensor:
        rows = ProjectedRows(projection)
        features: list[Tensor] = []
        for _, batch in groups:
            batch_gradients(model, batch, lambda name, g: rows.add(name, direction(name, g)))
            rows.end_batch()
            if rows.is_full:
                features.append(rows.take())
        features += [rows.take()] if rows.rows else []
        return torch.cat(features)[order.argsort()]

    return run


def projecting(side: str, kind: str, rows: str) -> Variant:
    slow = kind != "sjlt"  # a dense matrix is made anew, once for all sentences
    settings = SETTINGS[2:3] if slow else SETTINGS
    return Variant(partial(projected, side=side, kind=kind), settings, rows, slow=slow)


if __name__ == "__main__":
    cosines = {
        name: Variant(partial(scored, side=side), SETTINGS, rows)
        for name, side, rows in (
            ("scores", "sgd", "cosines"),
            ("less", "less", "less"),
            ("adam-scores", "adam_v", "adam-v"),
        )
    }
    features = {
        "sparse": projecting("sgd", "sjlt", "features"),
        "less-sparse": projecting("less", "sjlt", "less-features"),
        "dense": projecting("sgd", "gaussian", "dense-features"),
        "less-dense": projecting("less", "rademacher", "less-features"),
    }
    main({**cosines, "gradients": Variant(gradients, SETTINGS, "gradients"), **features})
