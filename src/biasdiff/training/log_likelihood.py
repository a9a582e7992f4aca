"""Log-likelihoods of texts under a model, forward passes only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from biasdiff.data.batching import make_batch, token_budget_batches
from biasdiff.data.encoding import Encoding
from biasdiff.errors import NonFiniteError
from biasdiff.functional.losses import sequence_log_probs
from biasdiff.progress import task


def log_likelihoods(
    model: Any,
    encodings: Sequence[Encoding],
    *,
    max_tokens: int,
    description: str = "log-likelihoods",
) -> NDArray[np.float64]:
    """Return log P of each text's target tokens given those before, summed, [n].

    The first word is conditioned on the start token (BOS, else EOS), as lm-evaluation-harness does
    for an empty context.

    Raises:
        NonFiniteError: If a value is NaN or infinite; the row is named.
    """
    device = next(model.parameters()).device
    values = np.empty(len(encodings))
    model.eval()
    with task(description, len(encodings)) as progress, torch.inference_mode():
        for members in token_budget_batches([len(e) for e in encodings], max_tokens=max_tokens):
            batch = make_batch([encodings[i] for i in members], device=device)
            inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
            logits = model(**inputs, use_cache=False).logits
            values[members] = sequence_log_probs(logits, batch["labels"]).double().cpu().numpy()
            progress.advance(len(members))
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        raise NonFiniteError(
            f"the log-likelihood of {len(broken)} texts is not finite, first in row {broken[0]}",
            expected="finite log-likelihoods",
            remedy="check the model for NaN weights, or use float32",
        )
    return values
