"""What every peer's script shares: the job it is given, the model, the clock.

Runs in the peers' own environments, where there is no biasdiff.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Setting = dict[str, Any]
Pass = Callable[[], Tensor]
"""Goes through all sentences once; returns one row for each."""


@dataclass(frozen=True)
class Job:
    """What is measured.

    Attributes:
        folder: Holds all files of the job.
        train: Token ids of the sentences, the longest first, so that padding costs nobody much.
        probe: Token ids of one probe sentence.
        parameters: Names of the adapter's weights as in `saved_name`, in the model's order.
        projection: Wanted dimension of projected gradients.
    """

    folder: Path
    model: str
    train: list[list[int]]
    probe: list[int]
    parameters: list[str]
    threads: int
    projection: int

    def load_model(self) -> Any:
        """Return the PEFT model in float32, in evaluation mode."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(base, str(self.folder / "adapter"), is_trainable=True)
        return adapted.eval()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return ``probe``, ``exp_avg`` or ``exp_avg_sq`` by `saved_name`."""
        return load_file(self.folder / f"{name}.safetensors")

    def vector(self, name: str) -> Tensor:
        """Return the same as one vector, in the model's order."""
        tensors = self.tensors(name)
        return torch.cat([tensors[parameter].flatten() for parameter in self.parameters])

    def side(self) -> int:
        """Return s for which s x s for each weight is about `projection`; at most LoRA's rank."""
        ranks = [min(tensor.shape) for tensor in self.tensors("probe").values()]
        return min(int((self.projection / len(ranks)) ** 0.5), *ranks)

    @staticmethod
    def read(folder: Path) -> Job:
        """Return the job that is written in a folder."""
        return Job(folder, **json.loads((folder / "job.json").read_text()))


@dataclass(frozen=True)
class Variant:
    """One way of using a peer.

    Attributes:
        prepare: From job, model and setting to a pass; not timed.
        settings: The short list of which the fastest is taken.
        rows: What a pass returns, as `expected.py` has it; gradients in the model's order of
            parameters.
        slow: Takes minutes: one pass, no warm-up.
        every: Take every so many-th sentence only.
        asked: Only run if named on the command line.
    """

    prepare: Callable[[Job, Any, Setting], Pass]
    settings: Sequence[Setting]
    rows: str
    slow: bool = False
    every: int = 1
    asked: bool = False


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Return consecutive groups of ``size``."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def padded(sentences: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ids and labels [n, t], padded on the right with 0 and -100."""
    width = max(map(len, sentences))
    ids = torch.tensor([s + [0] * (width - len(s)) for s in sentences])
    labels = torch.tensor([s + [-100] * (width - len(s)) for s in sentences])
    return ids, labels


def example_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of each sentence's tokens but the first, [n]."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    return losses.sum(1) / labels[:, 1:].ne(-100).sum(1)


def saved_name(name: str) -> str:
    """Return the name of a parameter or its module under which the job's files have it."""
    name = name.removeprefix("base_model.").removesuffix(".weight")
    return f"{name.replace('.default', '')}.weight"


def main(variants: dict[str, Variant]) -> None:
    """Do what the driver asks on the command line and write the answer to a JSON file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("list", "check", "tune", "measure"))
    parser.add_argument("answer", type=Path)
    parser.add_argument("--job", type=Path)
    parser.add_argument("--variant", choices=list(variants))
    parser.add_argument("--setting", type=json.loads)
    options = parser.parse_args()
    if options.action == "list":
        shown = {name: {**vars(v), "prepare": None} for name, v in variants.items()}
        options.answer.write_text(json.dumps(shown))
        return
    variant = variants[options.variant]
    job = Job.read(options.job)
    torch.set_num_threads(job.threads)
    if options.action != "check":
        job = replace(job, train=job.train[:: variant.every])
    options.answer.write_text(json.dumps(ACTIONS[options.action](variant, job, options)))


def check(variant: Variant, job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Save one pass's rows beside the answer."""
    rows = variant.prepare(job, job.load_model(), options.setting or variant.settings[0])()
    save_file({"rows": rows.float().contiguous()}, options.answer.with_suffix(".safetensors"))
    return {"shape": list(rows.shape)}


def tune(variant: Variant, job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of each setting, the better of two passes."""
    seconds = []
    for setting in variant.settings:
        try:
            run = variant.prepare(job, job.load_model(), setting)
            seconds.append(min(timed(run), timed(run)))
        except RuntimeError as error:  # no memory for a large batch
            print(f"{setting}: {error}")
            seconds.append(float("inf"))
    return {"seconds": seconds}


def measure(variant: Variant, job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Return the median seconds of three passes after a warm-up, and what one pass went through."""
    run = variant.prepare(job, job.load_model(), options.setting)
    if not variant.slow:
        run()
    seconds = statistics.median(timed(run) for _ in range(1 if variant.slow else 3))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tokens = sum(map(len, job.train))
    return {"seconds": seconds, "tokens": tokens, "examples": len(job.train), "peak_mib": peak}


def timed(run: Pass) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


ACTIONS = {"check": check, "tune": tune, "measure": measure}
