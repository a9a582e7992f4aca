"""Train set, probe pairs, evaluation pairs and held-out facts, drawn from the shipped sets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from biasdiff.data.draws import shipped_draws
from biasdiff.data.probe import ProbePair
from biasdiff.data.records import TrainExample
from biasdiff.data.shipped_sets import Fact, one_sided_stereotypes, shipped_facts
from biasdiff.data.stratification import grouped
from biasdiff.errors import ConfigError

T = TypeVar("T")
HELD_OUT_SHARE = 0.35


@dataclass(frozen=True)
class ShippedMixture:
    """Train set, probe and held-out data without a stereotype or a fact's subject in common.

    Attributes:
        train: Stereotype sentences (``is_bias`` 1) and facts (0), shuffled.
        probe: Of the reference draw.
        pairs: Of the test draw.
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
    one_sided: bool = False,
) -> ShippedMixture:
    """Draw a mixture; what one draw holds does not depend on the sizes of the others.

    The train set takes the stereotype side of ``stereo`` pairs of the rest draw, the probe comes
    from the reference draw, the evaluation pairs from the test draw; facts are divided between
    train and held-out by subject.

    Args:
        size: Train examples.
        biased_share: Of them, the share of stereotype sentences.
        probe_pairs: Pairs of the reference draw.
        evaluation_pairs: Of the test draw.
        held_out_texts: Held-out facts.
        seed: Of which pairs and facts are taken.
        one_sided: Take `one_sided_stereotypes` only, and evaluation pairs of the test and the
            validation draw, since one alone holds too few of them.

    Raises:
        ConfigError: If the shipped sets are too small for a size.
    """
    draws = shipped_draws()
    rest, reference, test = draws.rest, draws.reference, draws.test
    if one_sided:
        names = one_sided_stereotypes()
        rest, reference, test = (
            [pair for pair in draw if pair.stereotype_id in names]
            for draw in (rest, reference, [*test, *draws.validation])
        )
    known, unseen = _split_facts(shipped_facts(), seed)
    biased_count = round(size * biased_share)
    stereotypes = [p for p in rest if p.stereo_antistereo == "stereo"]
    biased = _balanced(stereotypes, biased_count, "data.size x data.biased_share", seed)
    facts = _first(known, size - biased_count, "data.size x (1 - data.biased_share)")
    train = [(p.extra["id"], p.sent_more, 1, p.bias_type) for p in biased]
    rows = [*train, *((f.id, f.text, 0, None) for f in facts)]
    random.Random(seed).shuffle(rows)
    return ShippedMixture(
        train=[
            TrainExample(id=name, row=row, text=text, is_bias=truth, bias_type=kind)
            for row, (name, text, truth, kind) in enumerate(rows)
        ],
        probe=_balanced(reference, probe_pairs, "data.probe_pairs", seed),
        pairs=_balanced(test, evaluation_pairs, "data.evaluation_pairs", seed),
        held_out=_first(unseen, held_out_texts, "data.held_out_texts"),
    )


def held_out_facts(seed: int = 0) -> list[Fact]:
    """Return all facts that no mixture of the seed trains on."""
    return _split_facts(shipped_facts(), seed)[1]


def _split_facts(facts: Sequence[Fact], seed: int) -> tuple[list[Fact], list[Fact]]:
    draw = random.Random(seed)
    by_subject = grouped(facts, lambda f: f.subject)
    subjects = sorted(by_subject)
    draw.shuffle(subjects)
    held_out = round(HELD_OUT_SHARE * len(subjects))
    parts = (subjects[held_out:], subjects[:held_out])
    known, unseen = ([f for name in part for f in by_subject[name]] for part in parts)
    return known, unseen


def _balanced(pairs: Sequence[ProbePair], count: int, key: str, seed: int) -> list[ProbePair]:
    """Take ``count`` pairs, going round the bias types, in an order drawn within each."""
    draw = random.Random(seed)
    columns = list(grouped(pairs, lambda p: p.bias_type).values())
    for column in columns:
        draw.shuffle(column)
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
