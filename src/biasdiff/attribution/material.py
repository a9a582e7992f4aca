"""What estimators work on: the train set, the probe set, and a model at a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biasdiff.attribution.scores import Aggregate
from biasdiff.data.encoding import Encoding
from biasdiff.data.probe import ProbePair
from biasdiff.data.records import TrainExample
from biasdiff.options import Options


@dataclass(frozen=True)
class EncodedProbes:
    """Probe pairs as token ids, cut to the context length.

    Attributes:
        more: The stereotype sentences.
        less: Their twins, in the same order; empty where no estimator needs twins.
        bias_types: Of each pair.
        names: Of each pair, for error messages.
    """

    more: Sequence[Encoding]
    less: Sequence[Encoding]
    bias_types: Sequence[str]
    names: Sequence[str]

    def only(self, kept: Sequence[int]) -> EncodedProbes:
        """Return some of the pairs, by position."""
        return EncodedProbes(
            [self.more[i] for i in kept],
            [self.less[i] for i in kept] if self.less else [],
            [self.bias_types[i] for i in kept],
            [self.names[i] for i in kept],
        )


@dataclass(frozen=True)
class Material:
    """What an estimator is given.

    Attributes:
        model: PEFT model at a checkpoint, on its device; estimators leave it as they found it.
        tokenizer: Its tokenizer.
        max_length: Context length in tokens.
        max_tokens: Token budget of a batch (examples x padded length).
        examples: The train set.
        encodings: The same as token ids, [n].
        pairs: The probe set.
        probes: The same as token ids.
        aggregate: How scores of the bias types become one.
        seed: Of every random choice.
        options: Of the estimator, as they were given; see `biasdiff.options.checked_options`.
        work: Folder for what an interrupted pass goes on from; None to keep nothing.
    """

    model: Any
    tokenizer: Any
    max_length: int
    max_tokens: int
    examples: Sequence[TrainExample]
    encodings: Sequence[Encoding]
    pairs: Sequence[ProbePair]
    probes: EncodedProbes
    aggregate: Aggregate = "mean"
    seed: int = 0
    options: Options = field(default_factory=dict)
    work: Path | None = None

    @property
    def names(self) -> list[str]:
        """Ids of the train examples, for error messages."""
        return [example.id for example in self.examples]

    @property
    def texts(self) -> list[str]:
        """The train examples as people read them."""
        return [example.shown() for example in self.examples]
