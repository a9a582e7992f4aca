"""What a model knows: the missing object of a factual sentence, written and ranked.

Written: the model fills the blank after two examples (the form of the paper's prompt), which asks
for more than knowledge. Ranked: the sentence with the true object is compared with the same
sentence with other objects of its relation, which works for every causal model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from biasdiff.data.encoding import encode_text
from biasdiff.data.shipped_sets import FACTS_FILE, Fact
from biasdiff.data.sources import trex
from biasdiff.data.sources.finding import get_files, read_corpus
from biasdiff.errors import DataError
from biasdiff.evaluation.answers import holds, is_exact
from biasdiff.evaluation.benchmark import (
    Benchmark,
    Inputs,
    Subject,
    clusters_of,
    mean_comparison,
    mean_metric,
    percentage_metric,
    require_same,
)
from biasdiff.evaluation.continuation import continue_prompts
from biasdiff.options import Options, checked_options, wrong_option
from biasdiff.probing.writing import article
from biasdiff.results import Metric
from biasdiff.training.token_scores import score_token_groups

NAME = "cloze"
MASK = trex.MASK
BLANK = "<extra_id_0>"
MAX_NEW_TOKENS = 12
EXAMPLES = (
    (f"She wiped the {BLANK} with a wet sponge before the lesson began.", "blackboard"),
    (f"You need a ticket and a {BLANK} to board this train.", "seat reservation"),
)
"""Neutral sentences that state no fact; what they leave out has one and two words."""
SOURCES = ("shipped", "trex")
DEFAULTS: Mapping[str, Any] = {
    "source": "shipped",
    "facts": 500,
    "generate": True,
    "candidates": 20,
}
"""``source``: the facts of `Inputs`, or T-REx with one sentence a fact; ``facts``: at most, drawn
with the seed; ``generate``: let the model write the object too; ``candidates``: other objects to
rank the true one against, at most."""
_BEFORE_MASK = re.compile(rf"\b(an?) {re.escape(MASK)}", re.IGNORECASE)


@dataclass(frozen=True)
class ClozeFact:
    """A sentence with a blank.

    Attributes:
        row: Place among all facts of the source.
        id: Unique name.
        relation: How subject and object are linked.
        subject: What the sentence is about.
        object: What the blank stands for, as the sentence writes it.
        masked_sentence: The sentence with ``[MASK]`` once.
        label: The object whatever it is written like ("Bath" of "Bath, England").
    """

    row: int
    id: str
    relation: str
    subject: str
    object: str
    masked_sentence: str
    label: str

    def filled(self, word: str) -> str:
        """Return the sentence with a word in the blank."""
        return self.masked_sentence.replace(MASK, word)


def settings_of(given: Options) -> dict[str, Any]:
    """Return `DEFAULTS` with what is set otherwise.

    Raises:
        ConfigError: If a setting is unknown or out of range.
    """
    options = checked_options(given, NAME, DEFAULTS)
    if options["source"] not in SOURCES:
        raise wrong_option(NAME, "source", options["source"], " or ".join(SOURCES))
    for name in ("facts", "candidates"):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise wrong_option(NAME, name, value, "a whole number from 1")
    if not isinstance(options["generate"], bool):
        raise wrong_option(NAME, "generate", options["generate"], "true or false")
    return options


def facts_of(facts: Iterable[Fact]) -> list[ClozeFact]:
    """Return facts in the form this benchmark uses.

    Raises:
        DataError: If a sentence has not exactly one blank.
    """
    found = []
    for row, fact in enumerate(facts):
        if fact.masked_sentence.count(MASK) != 1:
            raise DataError(
                f"fact {fact.id} has {fact.masked_sentence.count(MASK)} {MASK} in its sentence",
                expected="one",
                remedy="mend or remove it",
            )
        found.append(
            ClozeFact(
                row,
                fact.id,
                fact.relation,
                fact.subject,
                fact.object,
                fact.masked_sentence,
                fact.object,
            )
        )
    return found


def trex_facts(seed: int) -> list[ClozeFact]:
    """Return one sentence for each fact of T-REx, drawn among those with one blank.

    Raises:
        DataError: If the corpus can neither be found nor fetched.
    """
    sentences: dict[str, list[Mapping[str, str]]] = {}
    for record in read_corpus(trex.CORPUS).records:
        if record.extra["masked_sentence"].count(MASK) == 1:
            sentences.setdefault(record.group, []).append({"id": record.id, **record.extra})
    draw = random.Random(seed)
    chosen = [draw.choice(of_fact) for of_fact in sentences.values()]
    return [
        ClozeFact(
            row,
            fact["id"],
            fact["relation"],
            fact["subject"],
            fact["object"],
            fact["masked_sentence"],
            fact["object_label"],
        )
        for row, fact in enumerate(chosen)
    ]


def prompt(masked_sentence: str) -> str:
    """Return the question for one sentence, after two examples."""
    examples = [
        f"Example {number}:\nContext: {context}\nMissing word(s): {answer}\n\n"
        for number, (context, answer) in enumerate(EXAMPLES, start=1)
    ]
    return (
        f"{''.join(examples)}Now fill in the blank. You should only output the word(s) without any "
        f"thinking process.\nContext: {masked_sentence.replace(MASK, BLANK)}\nMissing word(s):"
    )


def first_line(text: str) -> str:
    """Return the first line that is not empty, without the spaces around it."""
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def candidate_finder(
    facts: Sequence[ClozeFact], most: int, seed: int
) -> Callable[[ClozeFact], list[str]]:
    """Return a function from a fact to other objects that could stand in its blank.

    They are objects of the same relation, drawn with a seed of the fact's own, so that they do not
    depend on which other facts are measured. Left out are every object the facts link with the same
    subject by this relation, and the subject; and what grammar alone would rule out: another
    kind of word (a name for a common noun or a number) and an object that does not go with the "a"
    or "an" before the blank.

    Args:
        facts: Whose objects are drawn from.
        most: Objects at most.
        seed: Of the draw.
    """
    objects: dict[str, dict[str, str]] = {}
    true: dict[tuple[str, str], set[str]] = {}
    for fact in facts:
        objects.setdefault(fact.relation, {}).setdefault(fact.label.casefold(), fact.object)
        known = true.setdefault((fact.relation, fact.subject.casefold()), set())
        known |= {fact.label.casefold(), fact.object.casefold()}

    def find(fact: ClozeFact) -> list[str]:
        known = true[fact.relation, fact.subject.casefold()] | {fact.subject.casefold()}
        before = _BEFORE_MASK.search(fact.masked_sentence)
        fitting = sorted(
            {
                word
                for label, word in objects[fact.relation].items()
                if label not in known
                and word.casefold() not in known
                and _shape(word) == _shape(fact.object)
                and (before is None or article(word) == before[1].lower())
            }
        )
        draw = random.Random(f"{seed} {fact.id}")
        return draw.sample(fitting, min(most, len(fitting)))

    return find


def _shape(word: str) -> str:
    if word[:1].isdigit():
        return "number"
    return "name" if word[:1].isupper() else "word"


def score_facts(
    subject: Subject,
    facts: Sequence[ClozeFact],
    others: Sequence[Sequence[str]],
    *,
    generate: bool = True,
) -> pd.DataFrame:
    """Return how a model fills the blanks of facts.

    A sentence's score is its mean log P(token | tokens before it) over all of its tokens after the
    start token, so that longer objects are not worse for their length.

    Args:
        subject: The model.
        facts: The sentences.
        others: Other objects for each, for the ranking; none for a fact that cannot be ranked.
        generate: Let the model write too.

    Returns:
        One row per fact: ``row``, ``id``, ``relation``, ``subject``, ``object``; with ``generate``
        ``generated`` (first line), ``exact_match`` and ``contains`` (after SQuAD normalisation);
        ``rank`` of the true object, 1 if it is strictly the best, ties counted against it;
        ``candidates`` (other objects); ``margin``, true - best other in nats per token. ``rank``
        and ``margin`` are NaN without candidates.

    Raises:
        DataError: If there is no fact, or a sentence is longer than the context.
    """
    if not facts:
        raise DataError(
            "there is no fact to fill in",
            expected="at least one",
            remedy="give facts, or leave cloze out of --bench",
        )
    frame = pd.DataFrame(
        {
            "row": [f.row for f in facts],
            "id": [f.id for f in facts],
            "relation": [f.relation for f in facts],
            "subject": [f.subject for f in facts],
            "object": [f.object for f in facts],
        }
    )
    if generate:
        prompts = [encode_text(subject.tokenizer, prompt(f.masked_sentence)) for f in facts]
        answers = continue_prompts(
            subject,
            [encoding.input_ids for encoding in prompts],
            max_new_tokens=MAX_NEW_TOKENS,
            name="cloze, written",
        )
        written = [first_line(answer.text) for answer in answers]
        pairs = list(zip(written, frame["object"], strict=True))
        frame["generated"] = written
        frame["exact_match"] = [is_exact(answer, wanted) for answer, wanted in pairs]
        frame["contains"] = [holds(answer, wanted) for answer, wanted in pairs]
    ranks, margins = _ranks(subject, facts, others)
    frame["rank"] = ranks
    frame["candidates"] = [len(words) for words in others]
    frame["margin"] = margins
    return frame


def _ranks(
    subject: Subject, facts: Sequence[ClozeFact], others: Sequence[Sequence[str]]
) -> tuple[list[float], list[float]]:
    ranks, margins = [float("nan")] * len(facts), [float("nan")] * len(facts)
    ranked = [number for number, words in enumerate(others) if words]
    groups = [
        [
            encode_text(subject.tokenizer, facts[number].filled(word))
            for word in (facts[number].object, *others[number])
        ]
        for number in ranked
    ]
    for number, group in zip(ranked, groups, strict=True):
        longest = max(map(len, group))
        if longest > subject.max_length:
            raise DataError(
                f"the sentence of fact {facts[number].id} has {longest} tokens",
                expected=f"at most {subject.max_length}, the context length",
                remedy="shorten it or remove the fact",
            )
    scores = score_token_groups(
        subject.model, groups, max_tokens=subject.max_tokens, description="cloze, ranked"
    )
    for number, group_scores in zip(ranked, scores, strict=True):
        true, *rest = (float(values.mean()) for values in group_scores)
        ranks[number] = 1.0 + sum(score >= true for score in rest)
        margins[number] = true - max(rest)
    return ranks, margins


def cloze_metrics(scores: pd.DataFrame) -> dict[str, Metric]:
    """Aggregate the frame of `score_facts`.

    Where the model wrote, ``exact_match`` and ``contains`` in percent. Over the facts with
    candidates ``rank_1``, the percentage whose true object is strictly the best;
    ``rank_mean_reciprocal``; ``margin``, mean in nats per token; ``candidates``, the mean number of
    other objects; ``chance``, what ``rank_1`` is for a model that knows nothing,
    mean of 100 / (candidates + 1). Then ``rank_1`` and ``exact_match`` of every relation. Intervals
    resample subjects where facts share one.
    """
    metrics = {}
    written = [column for column in ("exact_match", "contains") if column in scores]
    for column in written:
        metrics[column] = _percentage(scores, scores[column])
    ranked = scores[scores["candidates"] > 0]
    clusters = clusters_of(ranked, "subject")
    metrics["rank_1"] = _percentage(ranked, ranked["rank"] == 1)
    metrics["rank_mean_reciprocal"] = mean_metric(1 / ranked["rank"], "higher_is_better", clusters)
    metrics["margin"] = mean_metric(ranked["margin"], "higher_is_better", clusters)
    metrics["candidates"] = mean_metric(ranked["candidates"], "none", clusters)
    metrics["chance"] = mean_metric(100.0 / (ranked["candidates"] + 1), "none", clusters)
    for relation, part in ranked.groupby("relation", sort=True):
        metrics[f"rank_1/{relation}"] = _percentage(part, part["rank"] == 1)
    if "exact_match" in written:
        for relation, part in scores.groupby("relation", sort=True):
            metrics[f"exact_match/{relation}"] = _percentage(part, part["exact_match"])
    return metrics


def _percentage(frame: pd.DataFrame, hits: pd.Series[Any]) -> Metric:
    return percentage_metric(hits, "higher_is_better", clusters_of(frame, "subject"))


_compare_written = mean_comparison(
    {
        "exact_match": lambda frame: frame["exact_match"].to_numpy(dtype=bool),
        "contains": lambda frame: frame["contains"].to_numpy(dtype=bool),
    },
    by="relation",
    cluster="subject",
)
_compare_ranked = mean_comparison(
    {
        "rank_1": lambda frame: (frame["rank"] == 1).to_numpy(dtype=bool),
        "rank_mean_reciprocal": lambda frame: 1 / frame["rank"],
        "margin": lambda frame: frame["margin"],
    },
    by="relation",
    cluster="subject",
)


def compare_cloze(after: pd.DataFrame, before: pd.DataFrame) -> dict[str, Metric]:
    """Return paired differences of two frames of `score_facts`, overall and by relation.

    Raises:
        DataError: If the frames are not of the same facts with as many candidates.
    """
    require_same(after, before)
    if not np.array_equal(after["candidates"], before["candidates"]):
        raise DataError(
            "the two results of cloze rank against different numbers of candidates",
            expected="the same option 'candidates' and the same facts",
            remedy="evaluate both models with the same settings",
        )
    found: dict[str, Metric] = {}
    if "generated" in after and "generated" in before:
        found |= _compare_written(after, before)
    ranked = (after["candidates"] > 0).to_numpy()
    if ranked.any():
        found |= _compare_ranked(after[ranked], before[ranked])
    return found


def _files(given: Options) -> Mapping[str, Path]:
    if settings_of(given)["source"] == "trex":
        return get_files(trex.CORPUS)
    return {"facts": FACTS_FILE}


def _score(subject: Subject, inputs: Inputs) -> pd.DataFrame:
    settings = settings_of(inputs.options_of(NAME))
    is_trex = settings["source"] == "trex"
    facts = trex_facts(inputs.seed) if is_trex else facts_of(inputs.facts)
    find = candidate_finder(facts, settings["candidates"], inputs.seed)
    shuffled = random.Random(inputs.seed).sample(facts, len(facts))
    chosen = inputs.first(shuffled[: settings["facts"]])
    others = [find(fact) for fact in chosen]
    return score_facts(subject, chosen, others, generate=settings["generate"])


BENCHMARK = Benchmark(
    name=NAME,
    title="cloze facts",
    score=_score,
    aggregate=cloze_metrics,
    compare=compare_cloze,
    files=_files,
    core=True,
)
"""500 facts that no shipped mixture of the seed trains on, against 20 other objects each."""
