from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from corpus_fixtures import write_corpora

from biasdiff.data.encoding import encode_text
from biasdiff.data.shipped_mixture import held_out_facts
from biasdiff.data.shipped_sets import Fact, shipped_facts
from biasdiff.errors import ConfigError, DataError
from biasdiff.evaluation import cloze
from biasdiff.evaluation.answers import holds, is_exact, normalise_answer
from biasdiff.evaluation.benchmark import Inputs, Subject
from biasdiff.evaluation.cloze import (
    BENCHMARK,
    EXAMPLES,
    ClozeFact,
    candidate_finder,
    cloze_metrics,
    compare_cloze,
    facts_of,
    first_line,
    prompt,
    score_facts,
)
from biasdiff.training.token_scores import common_prefix, score_token_groups, score_tokens
from tiny_models import ARCHITECTURES, SENTENCES

Loader = Callable[..., tuple[Any, Any]]
CAPITALS = (
    ("Paris", "France"),
    ("Rome", "Italy"),
    ("Oslo", "Norway"),
    ("Lima", "Peru"),
    ("Cairo", "Egypt"),
)


def fact(subject: str, object_: str, relation: str = "capital_of", **changes: str) -> Fact:
    given = {
        "id": f"{relation}-{subject}-{object_}",
        "relation": relation,
        "subject": subject,
        "object": object_,
        "text": f"{subject} is in {object_} now.",
        "masked_sentence": f"{subject} is in [MASK] now.",
    }
    return Fact(**(given | changes))


FACTS = [fact(*pair) for pair in CAPITALS]


def subject_of(loaded: tuple[Any, Any], max_length: int = 64, max_tokens: int = 400) -> Subject:
    return Subject(*loaded, max_length, max_tokens)


def long_subject(tiny: Loader) -> Subject:
    """Return a tiny model that counts positions beyond its own context: prompts are long."""
    return subject_of(tiny("llama"), max_length=1024, max_tokens=4000)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  The Black   Sea. ", "black sea"),
        ("an apple", "apple"),
        ("A", "a"),
        ("“Rock ’n’ roll!”", "rock n roll"),
        ("U.S.A.", "usa"),
        ("Theatre", "theatre"),
        ("É\u0301", "é\u0301"),
        ("...", ""),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_in_squad(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal


def test_exact_and_contained_answers() -> None:
    assert is_exact("the North Sea.", "North Sea")
    assert not is_exact("North", "North Sea")
    assert holds("It is the north sea, I think", "North Sea")
    assert not holds("a testing ground", "tin")
    assert not is_exact("", "")
    assert not holds("anything", "?!")


def test_prompt_has_two_examples_that_are_no_facts() -> None:
    text = prompt("Paris is in [MASK] now.")
    assert text.startswith("Example 1:\nContext: ")
    assert text.count("<extra_id_0>") == 3
    assert text.count("Missing word(s):") == 3
    assert text.endswith("Context: Paris is in <extra_id_0> now.\nMissing word(s):")
    assert "You should only output the word(s) without any thinking process." in text
    known = {normalise_answer(f.text) for f in shipped_facts()}
    for context, answer in EXAMPLES:
        assert normalise_answer(context.replace(cloze.BLANK, answer)) not in known


@pytest.mark.parametrize(
    ("text", "line"),
    [(" France\nExample", "France"), ("\n\n France ", "France"), ("", ""), (" \n", "")],
)
def test_the_first_line_with_words_is_taken(text: str, line: str) -> None:
    assert first_line(text) == line


def test_candidates_are_other_objects_of_the_relation() -> None:
    facts = facts_of(
        [
            *FACTS,
            fact("Nicosia", "Cyprus"),
            fact("Jerusalem", "France", id="again"),
            fact("gold", "metal", "element"),
        ]
    )
    find = candidate_finder(facts, 20, 0)
    assert sorted(find(facts[0])) == ["Cyprus", "Egypt", "Italy", "Norway", "Peru"]
    assert find(facts[-1]) == []
    few = candidate_finder(facts, 2, 0)
    assert len(few(facts[0])) == len(set(few(facts[0]))) == 2
    assert few(facts[0]) == candidate_finder(facts, 2, 0)(facts[0])
    draws = {tuple(candidate_finder(facts, 2, seed)(facts[0])) for seed in range(9)}
    assert len(draws) > 1


def test_no_candidate_is_true_as_well() -> None:
    two = [fact("Cyprus", "Greek", "language"), fact("Cyprus", "Turkish", "language")]
    same = fact("Malta", "GREEK", "language")
    facts = facts_of(
        [*two, same, fact("Peru", "Spanish", "language"), fact("x", "Peru", "language")]
    )
    find = candidate_finder(facts, 20, 0)
    assert sorted(find(facts[0])) == ["Peru", "Spanish"]
    assert sorted(find(facts[2])) == ["Peru", "Spanish", "Turkish"]
    assert "Peru" not in find(facts[3])


def test_candidates_fit_the_article_and_are_written_alike() -> None:
    words = ["owl", "eagle", "wren", "hour", "29", "Au"]
    facts = facts_of(
        fact(f"s{i}", word, "bird", masked_sentence="It saw an [MASK] fly.")
        for i, word in enumerate(words)
    )
    find = candidate_finder(facts, 20, 0)
    assert sorted(find(facts[0])) == ["eagle", "hour"]
    assert find(facts[4]) == find(facts[5]) == []
    free = [replace(f, masked_sentence="It saw the [MASK] fly.") for f in facts]
    assert sorted(candidate_finder(free, 20, 0)(free[0])) == ["eagle", "hour", "wren"]


def test_shipped_facts_have_candidates_and_never_a_true_one() -> None:
    facts = facts_of(held_out_facts(0))
    find = candidate_finder(facts, 20, 0)
    found = [find(f) for f in facts]
    assert sum(len(others) == 0 for others in found) <= 0.02 * len(facts)
    assert sum(len(others) == 20 for others in found) >= 0.6 * len(facts)
    for f, others in zip(facts, found, strict=True):
        assert len(set(others)) == len(others)
        assert f.object not in others


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_groups_score_as_their_texts_do_alone(tiny: Loader, architecture: str) -> None:
    model, tokenizer = tiny(architecture)
    groups = [
        [
            encode_text(tokenizer, f"Paris is the {word}.")
            for word in ("capital", "cat", "capital of")
        ],
        [encode_text(tokenizer, "Rain falls.")],
        [encode_text(tokenizer, text) for text in ("A cat", "A cat sleeps", "A cat")],
        [encode_text(tokenizer, text) for text in SENTENCES[:4]],
    ]
    assert common_prefix(groups[0]) > 3
    assert common_prefix(groups[3]) == 1
    for shared in (True, False):
        found = score_token_groups(model, groups, max_tokens=90, share_prefixes=shared)
        for group, scores in zip(groups, found, strict=True):
            for text, values in zip(group, scores, strict=True):
                (alone,) = score_tokens(model, [text], max_tokens=90)
                np.testing.assert_allclose(values, alone, atol=2e-4)


def test_a_model_that_ignores_the_mask_is_scored_plainly(tiny: Loader) -> None:
    model, tokenizer = tiny("llama")
    group = [encode_text(tokenizer, f"The {word} sleeps.") for word in ("cat", "nurse", "man")]
    plain = score_tokens(model, group, max_tokens=90)
    forward = model.forward

    def deaf(**inputs: Any) -> Any:
        if "attention_mask" in inputs and inputs["attention_mask"].ndim == 4:
            inputs["attention_mask"] = None
        return forward(**inputs)

    model.forward = deaf
    (found,) = score_token_groups(model, [group], max_tokens=90)
    for ours, expected in zip(found, plain, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def slow_score(subject: Subject, text: str) -> float:
    ids = torch.tensor([[0, *subject.tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        logits = subject.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return float(logits.gather(1, ids[0, 1:, None]).mean())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ranks_against_a_slow_oracle(tiny: Loader, architecture: str) -> None:
    subject = subject_of(tiny(architecture))
    facts = facts_of(FACTS)
    others = [candidate_finder(facts, 3, 0)(f) for f in facts]
    frame = score_facts(subject, facts, others, generate=False)
    for row, (f, words) in enumerate(zip(facts, others, strict=True)):
        true = slow_score(subject, f.filled(f.object))
        rest = [slow_score(subject, f.filled(word)) for word in words]
        assert frame["rank"][row] == 1 + sum(score >= true for score in rest)
        assert frame["margin"][row] == pytest.approx(true - max(rest), abs=2e-4)
    assert frame["candidates"].tolist() == [3] * 5


def test_a_tie_counts_against_the_true_object(tiny: Loader) -> None:
    subject = subject_of(tiny("llama"))
    facts = facts_of(FACTS[:1])
    frame = score_facts(subject, facts, [["France"]], generate=False)
    assert frame["rank"].tolist() == [2.0]
    assert frame["margin"].tolist() == [0.0]


def test_without_candidates_a_fact_is_not_ranked(tiny: Loader) -> None:
    subject = subject_of(tiny("llama"))
    lone = fact("gold", "metal", "element")
    inputs = Inputs(facts=[*FACTS, lone], options={"cloze": {"generate": False}})
    frame = BENCHMARK.score(subject, inputs)
    metrics = BENCHMARK.aggregate(frame)
    unranked = frame[frame["id"] == lone.id].iloc[0]
    assert math.isnan(unranked["rank"])
    assert math.isnan(unranked["margin"])
    assert unranked["candidates"] == 0
    assert metrics["rank_1"].n == 5
    assert metrics["candidates"].value == 4
    assert metrics["chance"].value == pytest.approx(20)
    assert "rank_1/element" not in metrics
    assert "exact_match" not in metrics
    nothing = BENCHMARK.score(subject, Inputs(facts=[lone], options={"cloze": {"generate": False}}))
    figures = BENCHMARK.aggregate(nothing)
    assert math.isnan(figures["rank_1"].value)
    assert math.isnan(figures["chance"].value)
    assert BENCHMARK.compare(nothing, nothing) == {}


def test_figures_of_a_known_frame() -> None:
    frame = pd.DataFrame(
        {
            "row": [0, 1, 2, 3],
            "id": list("abcd"),
            "relation": ["x", "x", "y", "y"],
            "subject": ["s", "s", "t", "u"],
            "object": ["o"] * 4,
            "generated": ["o"] * 4,
            "exact_match": [True, False, False, False],
            "contains": [True, True, False, False],
            "rank": [1.0, 2.0, 4.0, float("nan")],
            "candidates": [3, 4, 9, 0],
            "margin": [0.5, -0.1, -0.4, float("nan")],
        }
    )
    metrics = cloze_metrics(frame)
    assert metrics["exact_match"].value == 25
    assert metrics["contains"].value == 50
    assert metrics["rank_1"].value == pytest.approx(100 / 3)
    assert metrics["rank_mean_reciprocal"].value == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert metrics["chance"].value == pytest.approx((25 + 20 + 10) / 3)
    assert metrics["margin"].value == pytest.approx(0)
    assert metrics["rank_1/x"].value == 50
    assert metrics["rank_1/y"].n == 1
    assert metrics["exact_match/y"].n == 2
    better = frame.assign(rank=[1.0, 1.0, 1.0, float("nan")], exact_match=[True] * 4)
    differences = compare_cloze(better, frame)
    assert differences["rank_1"].value == pytest.approx(200 / 3)
    assert differences["exact_match"].value == 75
    assert differences["rank_1/x"].value == 50
    assert differences["rank_1/x"].n == 2
    assert differences["margin"].value == 0
    with pytest.raises(DataError, match=r"different numbers of candidates.*same settings"):
        compare_cloze(frame.assign(candidates=[3, 4, 8, 0]), frame)


def test_written_answers_and_the_frame_from_parquet(tiny: Loader, tmp_path: Path) -> None:
    subject = long_subject(tiny)
    frame = BENCHMARK.score(subject, Inputs(facts=FACTS, seed=1))
    names = ["row", "id", "relation", "subject", "object", "generated", "exact_match", "contains"]
    assert list(frame.columns) == [*names, "rank", "candidates", "margin"]
    assert all("\n" not in text for text in frame["generated"])
    frame.to_parquet(tmp_path / "scores.parquet")
    read = pd.read_parquet(tmp_path / "scores.parquet")
    assert {k: m.to_json() for k, m in cloze_metrics(read).items()} == {
        k: m.to_json() for k, m in cloze_metrics(frame).items()
    }
    difference = compare_cloze(read, frame)
    assert difference["exact_match"].value == difference["rank_1"].value == 0
    order = frame["row"].tolist()
    assert sorted(order) == list(range(5))
    assert order != sorted(order)
    again = BENCHMARK.score(subject, Inputs(facts=FACTS, seed=1, limit=2))
    assert again["row"].tolist() == order[:2]
    assert again["generated"].tolist() == frame["generated"].tolist()[:2]
    np.testing.assert_allclose(again["margin"], frame["margin"][:2], atol=1e-4)


def test_a_model_that_knows_is_right(tiny: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    from biasdiff.evaluation.continuation import Continuation

    answers = ["France.\nExample 3", "in the Italy of old", "Sweden"]
    monkeypatch.setattr(
        cloze,
        "continue_prompts",
        lambda *_, **__: [Continuation([], text, np.empty(0)) for text in answers],
    )
    facts = facts_of(FACTS[:3])
    frame = score_facts(long_subject(tiny), facts, [[]] * 3)
    assert frame["exact_match"].tolist() == [True, False, False]
    assert frame["contains"].tolist() == [True, True, False]
    assert frame["generated"].tolist() == ["France.", "in the Italy of old", "Sweden"]


def test_trex_gives_one_sentence_a_fact(
    tiny: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIASDIFF_DATA_DIR", str(write_corpora(tmp_path)))
    (only,) = cloze.trex_facts(0)
    assert only == ClozeFact(
        0, only.id, "place of birth", "Ada", "Bath, England", "Ada was born in [MASK].", "Bath"
    )
    inputs = Inputs(options={"cloze": {"source": "trex", "generate": False}})
    frame = BENCHMARK.score(subject_of(tiny("llama")), inputs)
    assert frame["object"].tolist() == ["Bath, England"]


def test_a_sentence_of_a_fact_is_drawn_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    from biasdiff.data.sources.corpus import Record
    from biasdiff.data.sources.finding import Contents

    def record(number: int, masked: str) -> Record:
        extra = {"relation": "r", "subject": "s", "object": "o", "object_label": "O"}
        return Record("", f"t{number}", group="f", extra={**extra, "masked_sentence": masked})

    records = [record(n, f"Number {n} is [MASK].") for n in range(5)]
    records.append(record(9, "[MASK] is [MASK]."))
    monkeypatch.setattr(cloze, "read_corpus", lambda _: Contents(records, []))
    drawn = [cloze.trex_facts(seed)[0].masked_sentence for seed in range(30)]
    assert set(drawn) == {f"Number {n} is [MASK]." for n in range(5)}
    assert drawn == [cloze.trex_facts(seed)[0].masked_sentence for seed in range(30)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": "trex"}, "no option 'sources' (did you mean 'source'?)"),
        ({"source": "lama"}, "source is 'lama'; expected shipped or trex"),
        ({"facts": 0}, "facts is 0; expected a whole number from 1"),
        ({"candidates": True}, "candidates is True; expected a whole number from 1"),
        ({"generate": "no"}, "generate is 'no'; expected true or false"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        cloze.settings_of(options)


def test_what_cannot_be_measured_is_said(tiny: Loader) -> None:
    subject = subject_of(tiny("llama"), max_length=20)
    with pytest.raises(DataError, match=r"there is no fact.*leave cloze out of --bench"):
        BENCHMARK.score(subject, Inputs())
    with pytest.raises(DataError, match=r"fact x has 2 \[MASK\] in its sentence; expected one"):
        facts_of([fact("a", "b", id="x", masked_sentence="[MASK] [MASK]")])
    with pytest.raises(
        DataError, match=r"cloze, written: prompt \d has \d+ tokens; expected 1 to 8"
    ):
        BENCHMARK.score(subject, Inputs(facts=FACTS))
    long = fact("Paris", "France", masked_sentence=f"{'So ' * 20}[MASK].", id="long")
    with pytest.raises(
        DataError, match=r"sentence of fact long has \d+ tokens; expected at most 20"
    ):
        score_facts(subject, facts_of([long]), [["Peru"]], generate=False)
