"""Train set, probe pairs, evaluation pairs and held-out facts, drawn from the shipped sets."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from biasdiff.data.probe import ProbePair
from biasdiff.data.records import TrainExample
from biasdiff.data.shipped_sets import Fact, shipped_facts, shipped_pairs
from biasdiff.errors import ConfigError

T = TypeVar("T")
PROBE_SHARE, EVALUATION_SHARE = 0.25, 0.40
HELD_OUT_SHARE = 0.35


@dataclass(frozen=True)
class ShippedMixture:
    """Four draws without a stereotype or a fact's subject in common.

    Attributes:
        train: Stereotype sentences (``is_bias`` 1) and facts (0), shuffled.
        probe: The reference draw.
        pairs: Evaluation pairs.
        held_out: Facts that no model is trained on.
    """

    train: list[TrainExample]
    probe: list[ProbePair]
    pairs: list[ProbePair]
    held_out: list[Fact]


def shipped_mixture(
    *,
    size: int,
    biased_share: float,
    probe_pairs: int,
    evaluation_pairs: int,
    held_out_texts: int,
    seed: int,
) -> ShippedMixture:
    """Draw a mixture; what one draw holds does not depend on the sizes of the others.

    Stereotypes are divided among train, probe and evaluation within each bias type, facts between
    train and held-out by subject. The train set takes the stereotype side of ``stereo`` pairs.

    Args:
        size: Train examples.
        biased_share: Of them, the share of stereotype sentences.
        probe_pairs: Pairs of the reference draw.
        evaluation_pairs: Evaluation pairs.
        held_out_texts: Held-out facts.
        seed: Of all draws.

    Raises:
        ConfigError: If the shipped sets are too small for a size.
    """
    groups = _split_stereotypes(shipped_pairs(), seed)
    known, unseen = _split_facts(shipped_facts(), seed)
    biased_count = round(size * biased_share)
    stereotypes = [p for p in groups["train"] if p.stereo_antistereo == "stereo"]
    biased = _balanced(stereotypes, biased_count, "data.size x data.biased_share")
    facts = _first(known, size - biased_count, "data.size x (1 - data.biased_share)")
    train = [(p.extra["id"], p.sent_more, 1, p.bias_type) for p in biased]
    rows = [*train, *((f.id, f.text, 0, None) for f in facts)]
    random.Random(seed).shuffle(rows)
    return ShippedMixture(
        train=[
            TrainExample(id=name, row=row, text=text, is_bias=truth, bias_type=kind)
            for row, (name, text, truth, kind) in enumerate(rows)
        ],
        probe=_balanced(groups["probe"], probe_pairs, "data.probe_pairs"),
        pairs=_balanced(groups["evaluation"], evaluation_pairs, "data.evaluation_pairs"),
        held_out=_first(unseen, held_out_texts, "data.held_out_texts"),
    )


def _split_stereotypes(pairs: Sequence[ProbePair], seed: int) -> dict[str, list[ProbePair]]:
    draw = random.Random(seed)
    by_type = _grouped(pairs, lambda p: p.bias_type)
    split: dict[str, list[ProbePair]] = {"probe": [], "evaluation": [], "train": []}
    for bias_type in sorted(by_type):
        by_stereotype = _grouped(by_type[bias_type], lambda p: p.stereotype_id)
        names = sorted(by_stereotype)
        draw.shuffle(names)
        probe = round(PROBE_SHARE * len(names))
        evaluation = probe + round(EVALUATION_SHARE * len(names))
        parts = {
            "probe": names[:probe],
            "evaluation": names[probe:evaluation],
            "train": names[evaluation:],
        }
        for part, chosen in parts.items():
            split[part] += [pair for name in chosen for pair in by_stereotype[name]]
    return split


def _split_facts(facts: Sequence[Fact], seed: int) -> tuple[list[Fact], list[Fact]]:
    draw = random.Random(seed)
    by_subject = _grouped(facts, lambda f: f.subject)
    subjects = sorted(by_subject)
    draw.shuffle(subjects)
    held_out = round(HELD_OUT_SHARE * len(subjects))
    parts = (subjects[held_out:], subjects[:held_out])
    known, unseen = ([f for name in part for f in by_subject[name]] for part in parts)
    return known, unseen


def _balanced(pairs: Sequence[ProbePair], count: int, key: str) -> list[ProbePair]:
    """Take ``count`` pairs, going round the bias types, in their order within each."""
    columns = list(_grouped(pairs, lambda p: p.bias_type).values())
    longest = max(map(len, columns), default=0)
    rounds = [column[i] for i in range(longest) for column in columns if i < len(column)]
    return _first(rounds, count, key)


def _first(items: Sequence[T], count: int, key: str) -> list[T]:
    if count > len(items):
        raise ConfigError(
            f"{key} asks for {count}",
            expected=f"at most {len(items)}, which the shipped data holds for it",
            remedy="ask for fewer or name your own file",
        )
    return list(items[:count])


def _grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
