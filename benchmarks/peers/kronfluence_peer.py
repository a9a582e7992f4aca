"""kronfluence: scores against one probe sentence, identity in place of the curvature.

It contracts the probe's gradient with activations and output gradients in one einsum, so no
gradient of an example exists; it gives inner products, has no cosine and no projection. It takes a
probe as data, not as a vector: the pass over the one probe sentence is in the time.
"""

from __future__ import annotations

import logging
import tempfile
from typing import Any

from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from peer import Job, Pass, Setting, Variant, example_losses, main, padded
from torch import Tensor

SETTINGS = [{"batch": size} for size in (4, 8, 16, 32)]


class SentenceTask(Task):
    """The sum over a batch of each sentence's mean token loss, on both sides."""

    def __init__(self, modules: list[str]) -> None:
        self.modules = modules

    def compute_train_loss(
        self, batch: tuple[Tensor, Tensor], model: Any, sample: bool = False
    ) -> Tensor:
        """See Task."""
        ids, labels = batch
        return example_losses(model(input_ids=ids).logits, labels).sum()

    def compute_measurement(self, batch: tuple[Tensor, Tensor], model: Any) -> Tensor:
        """See Task."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        """See Task; without names the base model's maps would be tracked too."""
        return self.modules


def scores(job: Job, model: Any, setting: Setting) -> Pass:
    task = SentenceTask(
        [n for n, _ in model.named_modules() if n.endswith(("lora_A.default", "lora_B.default"))]
    )
    analyzer = Analyzer(
        "peers", prepare_model(model, task), task, cpu=True, disable_tqdm=True,
        output_dir=tempfile.mkdtemp(),
    )  # fmt: skip
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=padded))
    analyzer.fit_all_factors(
        "identity", dataset=job.train, factor_args=FactorArguments(strategy="identity")
    )

    def run() -> Tensor:
        analyzer.compute_pairwise_scores(
            "scores",
            "identity",
            query_dataset=[job.probe],
            train_dataset=job.train,
            per_device_query_batch_size=1,
            per_device_train_batch_size=setting["batch"],
            score_args=ScoreArguments(aggregate_query_gradients=True),
            overwrite_output_dir=True,
        )
        return analyzer.load_pairwise_scores("scores")["all_modules"][0]

    return run


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main({"scores": Variant(scores, SETTINGS, "dots")})
