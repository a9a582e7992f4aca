"""A few probe pairs and Adam moments for tests of attribution."""

from __future__ import annotations

from typing import Any

import torch

from biasdiff.attribution.material import EncodedProbes
from biasdiff.data.encoding import encode_text
from biasdiff.models.lora import lora_parameters
from biasdiff.training.checkpoints import AdamState

PAIRS = (
    ("The nurse said she would be late.", "The nurse said he would be late.", "gender"),
    ("The old man could not use the phone.", "The young man could not use the phone.", "age"),
    ("Girls cry.", "Boys cry.", "gender"),
    ("His grandmother forgot it all again.", "His sister forgot it all again.", "age"),
    ("She was bad at maths.", "He was bad at maths.", "gender"),
)


def encoded_probes(tokenizer: Any, *, twins: bool = True) -> EncodedProbes:
    return EncodedProbes(
        more=[encode_text(tokenizer, more) for more, _, _ in PAIRS],
        less=[encode_text(tokenizer, less) for _, less, _ in PAIRS] if twins else [],
        bias_types=[kind for _, _, kind in PAIRS],
        names=[f"probe row {row}" for row in range(len(PAIRS))],
    )


def random_adam(model: Any, *, step: int = 12) -> AdamState:
    """Return moments of about the gradients' size, so that neither hides the other."""
    generator = torch.Generator().manual_seed(3)

    def draw(parameter: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        return (0.1 * noise).to(parameter.dtype)

    named = dict(lora_parameters(model))
    return AdamState(
        exp_avg={n: draw(p) for n, p in named.items()},
        exp_avg_sq={n: draw(p).square() for n, p in named.items()},
        step=step,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
