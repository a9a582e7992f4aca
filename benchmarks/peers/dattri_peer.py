"""dattri: its hook engine (block-projected influence), with and without LoGra's projection."""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import torch
from dattri.algorithm import LoGraAttributor
from dattri.algorithm.block_projected_if.block_projected_if import BlockProjectedIFAttributor
from dattri.task import AttributionTask
from peer import Job, Pass, Setting, Variant, example_losses, main, padded
from torch import Tensor
from torch.utils.data import DataLoader

SETTINGS = [{"batch": size, "compile": c} for c in (False, True) for size in (4, 8, 16, 32)]
IDENTITY = {"device": "cpu", "proj_dim": -1, "proj_max_batch_size": 64, "proj_type": "identity"}


def loss(model: Any, batch: dict[str, Tensor], device: str) -> Tensor:
    """Mean over the batch: dattri multiplies each gradient by the batch size."""
    return example_losses(model(input_ids=batch["input_ids"]).logits, batch["labels"]).mean()


def collate(sentences: list[list[int]]) -> dict[str, Tensor]:
    ids, labels = padded(sentences)
    return {"input_ids": ids, "labels": labels}


def cached(job: Job, model: Any, setting: Setting, make: Any) -> Pass:
    """Return a pass that fills dattri's cache; projection matrices are made once, before."""
    # Its compressors are compiled: anew for each module and shape, until torch gives up.
    torch.compiler.set_stance("default" if setting["compile"] else "force_eager")
    layers = [
        n for n, _ in model.named_modules() if n.endswith(("lora_A.default", "lora_B.default"))
    ]
    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    loader = DataLoader(job.train, batch_size=setting["batch"], collate_fn=collate)
    attributor = make(
        task, layer_names=layers, hessian="Identity", device="cpu", offload="none",
        cache_dir=tempfile.mkdtemp(),
    )  # fmt: skip

    def run() -> Tensor:
        attributor.cache(loader)
        kept = attributor.offload_manager.cached_gradients
        return torch.cat([kept[i] for i in sorted(kept)])

    return run


def gradients(job: Job, model: Any, setting: Setting) -> Pass:
    def make(task: AttributionTask, **options: Any) -> BlockProjectedIFAttributor:
        return BlockProjectedIFAttributor(
            task, sparsifier_kwargs=dict(IDENTITY), projector_kwargs=dict(IDENTITY), **options
        )

    return cached(job, model, setting, make)


def projected(job: Job, model: Any, setting: Setting) -> Pass:
    def make(task: AttributionTask, **options: Any) -> LoGraAttributor:
        return LoGraAttributor(task, proj_dim=job.side() ** 2, **options)

    return cached(job, model, setting, make)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main(
        {
            "gradients": Variant(gradients, SETTINGS, "gradients"),
            "projected": Variant(projected, SETTINGS, "features"),
        }
    )
