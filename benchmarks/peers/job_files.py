"""Writes what all peers are given: adapter, sentences, probe vector, Adam moments."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from environments import ROOT
from peer import saved_name
from safetensors.torch import save_file
from torch import Tensor

from biasdiff.attribution.gradients import batch_gradients
from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding, encode_text
from biasdiff.data.shipped_mixture import shipped_mixture
from biasdiff.models.loading import load_model, load_tokenizer, resolve_model
from biasdiff.models.lora import LoraSettings, add_adapter, lora_parameters, save_adapter

RANK = 16


def tiny_model(folder: Path) -> Path:
    """Save the tests' tiny Llama, which is of SmolLM2's architecture."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_models import save_tiny_model

    return save_tiny_model(folder / "tiny", "llama")


def write_job(
    folder: Path, model_name: str, *, examples: int, checked: int, threads: int, projection: int
) -> str:
    """Write the job, and in ``check`` one of ``checked`` of its sentences; return a fingerprint.

    Sentences go by length, the longest first. ``probe`` is the sum of 18 unit gradients,
    ``probe_gradient`` the first of them before it is brought to unit length.
    Matrices B of the adapter are random, since at their start of zero A has no gradient.
    """
    source = resolve_model(model_name)
    tokenizer = load_tokenizer(source)
    model = add_adapter(load_model(source), LoraSettings(rank=RANK, dropout=0.0), seed=0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in lora_parameters(model):
            if name.endswith("lora_B.weight"):
                weight.normal_(std=0.01, generator=draw)
    data = shipped_mixture(
        size=examples,
        biased_share=0.3,
        probe_pairs=18,
        evaluation_pairs=9,
        held_out_texts=1,
        seed=0,
    )
    limit = model.config.get_text_config().max_position_embeddings
    train = [encode_text(tokenizer, e.text or "").cut(limit) for e in data.train]
    train.sort(key=len, reverse=True)
    probes = [encode_text(tokenizer, p.sent_more).cut(limit) for p in data.probe]
    parameters = list(lora_parameters(model))
    gradients = [_gradient(model, probe) for probe in probes]
    norms = [torch.stack([g.norm() for g in each.values()]).norm() for each in gradients]
    files = {
        "probe_gradient": gradients[0],
        "probe": {
            name: sum((g[name] / norm for g, norm in zip(gradients, norms, strict=True)))
            for name, _ in parameters
        },
        "exp_avg": {n: 1e-3 * torch.randn(w.shape, generator=draw) for n, w in parameters},
        "exp_avg_sq": {n: 1e-6 * torch.rand(w.shape, generator=draw) for n, w in parameters},
    }
    step = max(1, len(train) // checked)  # long and short ones
    for place, sentences in ((folder, train), (folder / "check", train[::step][:checked])):
        save_adapter(model, place / "adapter")
        for name, tensors in files.items():
            named = {saved_name(n): t.contiguous() for n, t in tensors.items()}
            save_file(named, place / f"{name}.safetensors")
        job = {
            "model": source.location,
            "train": [e.input_ids for e in sentences],
            "probe": probes[0].input_ids,
            "parameters": [saved_name(name) for name, _ in parameters],
            "threads": threads,
            "projection": projection,
        }
        (place / "job.json").write_text(json.dumps(job))
    told = json.dumps([source.fingerprint, job, [e.input_ids for e in train], RANK])
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _gradient(model: torch.nn.Module, sentence: Encoding) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    batch_gradients(model, make_batch([sentence]), lambda name, g: found.update({name: g[0]}))
    return found
