"""TRAK's library: vmap over per-example gradients, with and without its projection for the CPU.

Its own gradient computer differentiates every parameter of the model and drops most afterwards;
the one here, a subclass as its documentation invites, hands it the adapter's weights alone.
"""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import torch
from peer import Job, Pass, Setting, Variant, batches, example_losses, main, padded
from torch import Tensor
from trak import TRAKer
from trak.gradient_computers import FunctionalGradientComputer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import NoOpProjector

SETTINGS = [{"batch": size} for size in (2, 4, 8, 16)]
PROJECTED = [{"batch": 64}]  # the matrix is drawn anew for every batch


class AdapterGradients(FunctionalGradientComputer):
    """Differentiates the adapter's weights; the others are constants."""

    def load_model_params(self, model: Any) -> None:
        """See FunctionalGradientComputer."""
        named = dict(model.named_parameters())
        self.func_weights = {n: p for n, p in named.items() if "lora_" in n}
        rest = {n: p for n, p in named.items() if "lora_" not in n}
        self.func_buffers = {**rest, **dict(model.named_buffers())}


class SentenceLoss(AbstractModelOutput):
    """A sentence's mean token loss; called for one sentence at a time under vmap."""

    def __init__(self) -> None:
        super().__init__()

    @staticmethod
    def get_output(model: Any, weights: Any, buffers: Any, ids: Tensor, labels: Tensor) -> Tensor:
        """See AbstractModelOutput."""
        places = torch.arange(len(ids))[None]
        inputs = {"input_ids": ids[None], "position_ids": places, "use_cache": False}
        logits = torch.func.functional_call(model, (weights, buffers), (), inputs).logits
        return example_losses(logits, labels[None])[0]

    def get_out_to_loss_grad(self, model: Any, weights: Any, buffers: Any, batch: Any) -> Tensor:
        """See AbstractModelOutput; not used for gradients."""
        return torch.ones(len(batch[0]), 1)


def featurized(job: Job, model: Any, setting: Setting, **options: Any) -> Pass:
    """Return a pass that writes all features into TRAK's store."""
    names = [n for n, _ in model.named_parameters() if "lora_" in n]
    groups = [padded(group) for group in batches(job.train, setting["batch"])]

    def run() -> Tensor:
        traker.load_checkpoint(model.state_dict(), model_id=0)
        traker.saver.current_store["is_featurized"][:] = 0
        for ids, labels in groups:
            traker.featurize(batch=(ids, labels), num_samples=len(ids))
        return torch.tensor(traker.saver.current_store["grads"]) * traker.normalize_factor

    traker = TRAKer(
        model=model,
        task=SentenceLoss(),
        train_set_size=len(job.train),
        save_dir=tempfile.mkdtemp(),
        device="cpu",
        use_half_precision=False,
        gradient_computer=AdapterGradients,
        grad_wrt=names,
        logging_level=logging.ERROR,
        **options,
    )
    return run


def gradients(job: Job, model: Any, setting: Setting) -> Pass:
    return featurized(job, model, setting, projector=NoOpProjector(device="cpu"))


def projected(job: Job, model: Any, setting: Setting) -> Pass:
    return featurized(job, model, setting, proj_dim=job.projection)


if __name__ == "__main__":
    main(
        {
            "gradients": Variant(gradients, SETTINGS, "gradients"),
            "projected": Variant(projected, PROJECTED, "dense-features", slow=True),
        }
    )
