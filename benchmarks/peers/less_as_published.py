"""How LESS gets its gradients, written anew from its description.

One example at a time through a plain backward pass; gradients of all adapter weights concatenated;
the direction Adam would take; every 16 examples a dense Rademacher projection whose matrix is drawn
anew, block by block, as TRAK's projector without CUDA does. LESS projects in float16; on a CPU
without float16 arithmetic that takes hours, so float32 is used unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peer import Job, Pass, Setting, Variant, main
from torch import Tensor

BUFFER = 16
BLOCK = 128
BETAS, EPS = (0.9, 0.999), 1e-8


def directions(job: Job, model: Any) -> Callable[[list[int]], Tensor]:
    """Return a function from one sentence to Γ, [d]."""
    adapter = [p for p in model.parameters() if p.requires_grad]
    first, second = job.vector("exp_avg"), job.vector("exp_avg_sq")

    def direction(sentence: list[int]) -> Tensor:
        ids = torch.tensor([sentence])
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in adapter])
        model.zero_grad()
        m = BETAS[0] * first + (1 - BETAS[0]) * gradient
        v = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        return m / torch.sqrt(v + EPS)

    return direction


def without_projection(job: Job, model: Any, setting: Setting) -> Pass:
    """Cosine of each Γ with the probe vector."""
    direction = directions(job, model)
    vector = job.vector("probe")

    def run() -> Tensor:
        gammas = (direction(sentence) for sentence in job.train)
        return torch.stack([g @ vector / g.norm() for g in gammas])

    return run


def projected(job: Job, model: Any, setting: Setting) -> Pass:
    """Unit vectors of projected Γ."""
    direction = directions(job, model)
    dtype = getattr(torch, setting["dtype"])

    def project(rows: Tensor) -> Tensor:
        generator, found = torch.Generator(), []
        matrix = torch.empty(rows.shape[1], BLOCK, dtype=dtype)
        for block in range(job.projection // BLOCK):
            generator.manual_seed(block)
            matrix.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
            found.append(rows.to(dtype) @ matrix)
        return torch.cat(found, dim=1)

    def run() -> Tensor:
        features, buffer = [], []
        for number, sentence in enumerate(job.train, start=1):
            buffer.append(direction(sentence))
            if len(buffer) == BUFFER or number == len(job.train):
                features.append(project(torch.stack(buffer)))
                buffer.clear()
        return torch.nn.functional.normalize(torch.cat(features).float())

    return run


if __name__ == "__main__":
    single, half = {"batch": 1, "dtype": "float32"}, {"batch": 1, "dtype": "float16"}
    main(
        {
            "no-projection": Variant(without_projection, [{"batch": 1}], "less"),
            "projected": Variant(projected, [single], "less-features", slow=True, every=4),
            "projected-float16": Variant(
                projected, [half], "less-features", slow=True, every=4, asked=True
            ),
        }
    )
