"""bergson: its hook engine, with scores on the fly, raw gradients, and two-sided projections."""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import torch
from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector, Scorer
from bergson.data import allocate_batches
from bergson.gradients import AdamNormalizer
from bergson.score.score_writer import InMemorySequenceScoreWriter
from bergson.utils.peft import detect_peft_modules
from datasets import Dataset
from peer import Job, Pass, Setting, Variant, main, saved_name
from torch import Tensor

SETTINGS = [
    {"tokens": tokens, "through": through}
    for through in ("adapter", "embeddings")
    for tokens in (256, 512, 1024, 2048)
]


def collected(
    job: Job, model: Any, setting: Setting, processor: GradientProcessor, scores: bool = False
) -> Pass:
    """Return a pass of bergson's collector over all sentences.

    ``through`` is what keeps the backward pass alive. bergson's own command freezes everything but
    the input embeddings; with tied embeddings that also computes the gradient of the output layer's
    weight. Letting the adapter's weights need gradients instead is usually cheaper.
    """
    modules = detect_peft_modules(model)
    names = [m for m, _ in model.base_model.named_modules() if m in modules]
    if setting["through"] == "embeddings":
        model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)
    data = Dataset.from_dict({"input_ids": job.train, "length": [len(s) for s in job.train]})
    cfg = IndexConfig(run_path=tempfile.mkdtemp() + "/run", loss_reduction="mean")
    cfg.partial_run_path.mkdir(parents=True)
    groups = allocate_batches(data["length"][:], setting["tokens"])
    probe = job.tensors("probe")
    queries = {name: probe[saved_name(name)].flatten()[None] for name in names}

    def run() -> Tensor:
        scorer = Scorer(
            queries,
            names,
            InMemorySequenceScoreWriter(len(job.train), 1),
            torch.device("cpu"),
            torch.float32,
            unit_normalize=True,
        )
        collector = InMemoryCollector(
            model=model.base_model,
            data=data,
            cfg=cfg,
            processor=processor,
            target_modules=modules,
            scorer=scorer if scores else None,
        )
        CollectorComputer(
            model, data, collector=collector, cfg=cfg, batches=groups
        ).run_with_collector_hooks("pass")
        if scores:
            return collector.scores[:, 0]
        return torch.cat([collector.gradients[name] for name in names], dim=1)

    return run


def scores(job: Job, model: Any, setting: Setting) -> Pass:
    return collected(job, model, setting, GradientProcessor(), scores=True)


def adam_scores(job: Job, model: Any, setting: Setting) -> Pass:
    second = job.tensors("exp_avg_sq")
    normalizers = {
        name: AdamNormalizer(second[saved_name(name)]) for name in detect_peft_modules(model)
    }
    return collected(job, model, setting, GradientProcessor(normalizers=normalizers), scores=True)


def gradients(job: Job, model: Any, setting: Setting) -> Pass:
    return collected(job, model, setting, GradientProcessor())


def projected(job: Job, model: Any, setting: Setting) -> Pass:
    return collected(job, model, setting, GradientProcessor(projection_dim=job.side()))


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main(
        {
            "scores": Variant(scores, SETTINGS, "cosines"),
            "adam-scores": Variant(adam_scores, SETTINGS, "adam"),
            "gradients": Variant(gradients, SETTINGS, "gradients"),
            "projected": Variant(projected, SETTINGS, "features"),
        }
    )
