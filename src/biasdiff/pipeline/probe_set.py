"""The probe set of a stage: read, and encoded for a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from biasdiff.attribution.material import EncodedProbes
from biasdiff.config import SHIPPED
from biasdiff.data.draws import shipped_draw
from biasdiff.data.encoding import encode_text, say_how_many_cut
from biasdiff.data.probe import ProbePair, load_probe_pairs
from biasdiff.pipeline.base_model import BaseModel


def load_pairs(probe: str | Path) -> list[ProbePair]:
    """Read probe pairs from a file, or the package's reference draw for ``shipped``."""
    return shipped_draw("reference") if probe == SHIPPED else load_probe_pairs(probe)


def encode_probes(base: BaseModel, pairs: Sequence[ProbePair], *, twins: bool) -> EncodedProbes:
    """Encode probe pairs for a model, cutting to its context; twins only where they are needed."""
    more = [encode_text(base.tokenizer, p.sent_more) for p in pairs]
    less = [encode_text(base.tokenizer, p.sent_less) for p in pairs] if twins else []
    say_how_many_cut([*more, *less], base.max_length)
    return EncodedProbes(
        more=[encoding.cut(base.max_length) for encoding in more],
        less=[encoding.cut(base.max_length) for encoding in less],
        bias_types=[pair.bias_type for pair in pairs],
        names=[f"probe row {pair.row}" for pair in pairs],
    )
