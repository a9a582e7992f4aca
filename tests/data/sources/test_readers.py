"""Every corpus: its rules on a small fixture, and its counts on the originals where at hand."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from corpus_fixtures import bbq_row, write_corpora

from biasdiff.data.sources import bbq, seat, stereoset, winogender
from biasdiff.data.sources.ag_news import clean
from biasdiff.data.sources.corpus import Record
from biasdiff.data.sources.finding import (
    DATA_DIR,
    Contents,
    find_files,
    get_files,
    iterate,
    read_corpus,
)
from biasdiff.data.sources.registry import CORPORA, corpus_named
from biasdiff.errors import DataError

# records, biased, not biased, not labelled, groups
ORIGINALS = {
    "crows_pairs": (2 * 1508, 1290, 1290, 2 * 218, 1508),
    "stereoset": (3 * (2106 + 2123), 4229, 4229, 4229, 4229),
    "seat": (11977, 0, 0, 11977, 50),
    "winobias": (8 * 396, 1584, 1584, 0, 1584),
    "winogender": (720, 0, 0, 720, 240),
    "bug": (1717, 863, 434, 420, 1717),
    "gap": (2000 + 2000 + 454, 0, 4454, 0, 4454),
    "hatespeech": (24783, 1430 + 19190, 4163, 0, 24783),
    "realtoxicityprompts": (7285, 4190, 3047, 48, 7261),
    "ag_news": (7600, 0, 7600, 0, 7600),
    "trex": (99388, 0, 99388, 0, 21971),
    "wikitext2": (337, 0, 0, 337, 63),
}
NOT_AT_HAND = {"bbq"}
"""Corpora of which nobody had an original when the counts were taken; nor is a hash pinned."""


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_DIR, str(write_corpora(tmp_path / "data")))
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def read(name: str) -> Contents:
    return read_corpus(CORPORA[name])


@pytest.mark.parametrize("name", ORIGINALS)
def test_counts_of_the_original(name: str) -> None:
    corpus = CORPORA[name]
    if not os.environ.get(DATA_DIR) or find_files(corpus) is None:
        pytest.skip(f"{DATA_DIR} does not hold the original files of {name}")
    if name == "realtoxicityprompts" and len(find_files(corpus) or {}) != 3:
        pytest.skip("the counts are those of three subsets of RealToxicityPrompts")
    contents = read_corpus(corpus)
    labels = Counter(record.is_bias for record in contents.records)
    groups = len({record.group for record in contents.records})
    found = (len(contents.records), labels[1], labels[0], labels[None], groups)
    assert found == ORIGINALS[name]
    assert contents.set_aside == []
    assert len({record.id for record in contents.records}) == len(contents.records)
    assert all(record.text.strip() for record in contents.records)


def test_every_corpus_is_tested() -> None:
    assert set(ORIGINALS) | NOT_AT_HAND == set(CORPORA)
    assert not set(ORIGINALS) & NOT_AT_HAND
    assert not [file for name in NOT_AT_HAND for file in CORPORA[name].files if file.sha256]


@pytest.mark.parametrize("name", CORPORA)
def test_fixture_is_read_and_ids_are_unique(corpora: Path, name: str) -> None:
    contents = read(name)
    assert contents.records
    assert len({record.id for record in contents.records}) == len(contents.records)
    assert {r.is_bias for r in contents.records} <= {0, 1, None}


def test_crows_pairs(corpora: Path) -> None:
    contents = read("crows_pairs")
    assert [(r.id, r.is_bias, r.bias_type) for r in contents.records] == [
        ("0-more", 1, "age"),
        ("0-less", 0, "age"),
        ("1-more", None, "socioeconomic"),
        ("1-less", None, "socioeconomic"),
    ]
    assert contents.records[0].text == "The old man, as ever, lost his keys."
    assert [(s.line, s.reason) for s in contents.set_aside] == [
        (4, "'sent_more' is empty"),
        (5, "'stereo_antistereo' is 'both'"),
        (6, "3 fields instead of 6"),
    ]


def test_bug_is_detokenised_and_antistereo_is_not_labelled(corpora: Path) -> None:
    contents = read("bug")
    assert [(r.text, r.is_bias, r.direction) for r in contents.records] == [
        ("The nurse, who said she was tired, didn't stay.", 1, "stereo"),
        ("The doctor – a well-known one – lost her pen.", None, "antistereo"),
        ("The guest found his coat.", 0, None),
    ]
    assert [s.reason for s in contents.set_aside] == ["'stereotype' is '7'"]


def test_gap_is_read_without_quotes(corpora: Path) -> None:
    contents = read("gap")
    assert contents.records[0].text == 'Ann said "yes to Beth and took her bag.'
    assert [s.line for s in contents.set_aside] == [3, 3, 3]


def test_hatespeech_classes_and_line_numbers_after_a_break(corpora: Path) -> None:
    contents = read("hatespeech")
    assert [(r.text, r.is_bias) for r in contents.records] == [
        ("RT @a: tea & cake", 0),
        ("two lines", 1),
        ("nasty", 1),
    ]
    assert [(s.line, s.reason) for s in contents.set_aside] == [(6, "'class' is '9'")]


def test_toxicity_decides_and_repeats_are_dropped(corpora: Path) -> None:
    contents = read("realtoxicityprompts")
    assert [(r.text, r.is_bias) for r in contents.records] == [
        ("You are a fool.", 1),
        ("Tea is nice.", 0),
        ("Not scored.", None),
    ]
    assert [s.line for s in contents.set_aside] == [5, 6]
    assert [r.extra["prompt"] for r in contents.records] == ["You are", "Tea is", "Not"]


def test_ag_news_is_cleaned_and_joined(corpora: Path) -> None:
    contents = read("ag_news")
    assert contents.records[0].text == (
        'Fuel $2 a gallon AIR (Reuters) - It isn\'t cheap, said "Bob" today.'
    )
    assert [s.reason for s in contents.set_aside] == ["'class' is '9'"]


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("AT #38;T", "AT&T"),
        ("Smith  amp; Sons", "Smith & Sons"),
        ("it #146;s", "it\u2019s"),
        ("first\\second", "first second"),
        ("No. #1; really", "No. #1; really"),
        ('a &lt;A HREF="x"&gt;link&lt;/A&gt; b', "a link b"),
    ],
)
def test_broken_entities(dirty: str, expected: str) -> None:
    assert clean(dirty) == expected


def test_wikitext_without_headings_and_unknown_words(corpora: Path) -> None:
    texts = [r.text for r in read("wikitext2").records if r.extra["split"] == "test"]
    assert texts == [
        "The lobster is a well-known animal, 1,000 of which were seen.",
        'It lives in "the sea".',
    ]


def test_winobias_sides_share_a_group(corpora: Path) -> None:
    contents = read("winobias")
    assert len(contents.records) == 8
    assert Counter(r.is_bias for r in contents.records) == {1: 4, 0: 4}
    by_group = Counter(r.group for r in contents.records)
    assert set(by_group.values()) == {2}
    assert contents.records[0].text == "The guard woke the cook because he heard a dev 1."
    assert len(contents.set_aside) == 8


def test_stereoset_items(corpora: Path) -> None:
    items = list(stereoset.items(get_files(stereoset.CORPUS)))
    assert isinstance(items[0], stereoset.StereoSetItem)
    assert items[0].whole(items[0].stereotype) == "They are stereotype."
    assert isinstance(items[2], stereoset.StereoSetItem)
    assert items[2].whole(items[2].stereotype) == "Two bakers came. They are stereotype."
    assert [s.reason for s in read("stereoset").set_aside] == [
        "intrasentence: no stereotype sentence"
    ]


def test_seat_tests(corpora: Path) -> None:
    tests = list(seat.tests(get_files(seat.CORPUS)))
    assert len(tests) == 50
    assert tests[0].name == "weat1"
    assert tests[0].categories == ("TARG1", "TARG2", "ATTR1", "ATTR2")
    (corpora / "seat/weat1.jsonl").write_text('{"targ1": {}}')
    with pytest.raises(DataError, match=r"weat1\.jsonl lacks 'examples'; expected targ1, targ2"):
        read("seat")


def test_bbq_questions_and_whom_the_stereotype_names(corpora: Path) -> None:
    found = {i.id: i for i in bbq.items(get_files(bbq.CORPUS)) if isinstance(i, bbq.BbqItem)}
    assert len(found) == 44
    age = [found[f"Age-{number}"] for number in range(4)]
    assert [i.condition for i in age] == ["ambiguous", "disambiguated"] * 2
    assert [i.negative for i in age] == [True, True, False, False]
    assert [i.target for i in age] == [2] * 4
    assert [i.stereotyped for i in age] == [2, 2, 0, 0]  # not late: the other person
    assert [i.label for i in age] == [1, 0, 1, 2]
    assert {i.template for i in age} == {"Age-1"}
    targets = {name: item.target for name, item in found.items() if name.endswith("-0")}
    assert targets == {
        "Age-0": 2,
        "Disability_status-0": 2,
        "Gender_identity-0": 2,
        "Nationality-0": 2,
        "Physical_appearance-0": 2,
        "Race_ethnicity-0": 2,
        "Race_x_SES-0": 0,
        "Race_x_gender-0": None,
        "Religion-0": 2,
        "SES-0": 0,
        "Sexual_orientation-0": 0,
    }
    record = read("bbq").records[0]
    assert record.text == "Two came to tea. Who was late?"
    assert (record.id, record.is_bias, record.bias_type) == ("Age-0", None, "Age")
    assert record.group == "Age-1"
    assert record.extra == {
        "condition": "ambiguous",
        "polarity": "negative",
        "answer": "Not known",
        "stereotyped": "The grandfather",
    }


@pytest.mark.parametrize(
    ("first", "second", "groups", "target"),
    [
        (["Ann", "F"], ["Bo", "M"], ["F"], 0),
        (["the girl", "girl"], ["the boy", "boy"], ["F"], 0),
        (["Kim", "trans_F"], ["Ann", "nonTrans_F"], ["Transgender women", "Transgender men"], 0),
        (["Kim", "trans_F"], ["Ann", "nonTrans_F"], ["F"], None),
        (["old man", "old"], ["young man", "nonOld"], ["nonOld"], 2),
        (["African", "African"], ["Black", "Black"], ["African American", "Black"], 2),
        (["Bo", "lowSES-M-Black"], ["Al", "lowSES-M-White"], ["Black"], 0),
        (["", ""], ["White man", "M-White"], ["Latino"], 0),
        (["a", "a"], ["b", "b"], [], None),
        (["unknown guest", "a"], ["b", "b"], ["unknown"], None),
    ],
)
def test_bbq_group_names(
    corpora: Path, first: list[str], second: list[str], groups: list[str], target: int | None
) -> None:
    info = {"ans0": first, "ans1": ["Not known", "unknown"], "ans2": second}
    row = bbq_row("Age", 0) | {
        "ans0": "The Latina woman",
        "answer_info": info,
        "additional_metadata": {"stereotyped_groups": groups},
    }
    (corpora / "bbq/Age.jsonl").write_text(json.dumps(row))
    item = next(iter(bbq.items(get_files(bbq.CORPUS))))
    assert isinstance(item, bbq.BbqItem)
    assert item.target == target


def test_bbq_rows_that_are_set_aside(corpora: Path) -> None:
    infos = {f"ans{i}": ["x", "unknown"] for i in range(3)}
    broken = [
        {"label": 0},
        {"label": 3},
        {"question_polarity": "pos"},
        {"context_condition": "clear"},
        {"question": " "},
        {"answer_info": infos},
        {"answer_info": {}},
        {"additional_metadata": {"stereotyped_groups": "old"}},
    ]
    lines = [json.dumps(bbq_row("Age", 0, **changed)) for changed in broken]
    (corpora / "bbq/Age.jsonl").write_text("\n".join([*lines, "{"]))
    assert [(s.file, s.line, s.reason) for s in read("bbq").set_aside] == [
        ("Age.jsonl", 1, "'label' is 0 in a context that is 'ambig'"),
        ("Age.jsonl", 2, "'label' is 3"),
        ("Age.jsonl", 3, "'question_polarity' is 'pos'"),
        ("Age.jsonl", 4, "'context_condition' is 'clear'"),
        ("Age.jsonl", 5, "'question' is empty"),
        ("Age.jsonl", 6, "3 answers are 'unknown'"),
        ("Age.jsonl", 7, "KeyError 'ans0'"),
        ("Age.jsonl", 8, "TypeError 'stereotyped_groups' is 'old'"),
        (
            "Age.jsonl",
            9,
            "not JSON (Expecting property name enclosed in double quotes)",
        ),
    ]


def test_percentages_of_women(corpora: Path) -> None:
    path = corpora / "winogender/occupations-stats.tsv"
    assert winogender.percent_women(path) == {"cook": 40.0}
    for row, reason in (
        ("cook\tmany\n", "could not"),
        ("cook\t101\n", "'bls_pct_female' is '101'"),
    ):
        path.write_text(f"occupation\tbls_pct_female\n{row}")
        with pytest.raises(DataError, match=rf"stats\.tsv line 2: {reason}.*; expected an occupat"):
            winogender.percent_women(path)
    path.write_text("occupation\tbls_pct_female\ncook\n")
    with pytest.raises(DataError, match="line 2: 1 fields instead of 2"):
        winogender.percent_women(path)


def test_trex_fills_the_mask_once_for_each_sentence(corpora: Path) -> None:
    contents = read("trex")
    assert [(r.text, r.group, r.extra["relation"]) for r in contents.records] == [
        ("Ada was born in Bath, England.", "u1", "place of birth")
    ]
    assert [s.reason for s in contents.set_aside] == ["KeyError 'evidences'"]


def test_other_shapes_are_refused(corpora: Path) -> None:
    (corpora / "stereoset/dev.json").write_text("[]")
    with pytest.raises(DataError, match=r"dev\.json has no 'data' with 'intrasentence'"):
        read("stereoset")
    (corpora / "stereoset/dev.json").write_text("{")
    with pytest.raises(DataError, match=r"dev\.json is not JSON .*; expected the original file"):
        read("stereoset")
    (corpora / "bug/gold_BUG.csv").write_text("uid,text\n1,a\n")
    with pytest.raises(DataError, match=r"no column 'sentence_text' but 'uid', 'text'"):
        read("bug")
    (corpora / "ag_news/test.csv").write_text("")
    with pytest.raises(DataError, match="ag_news holds no readable row; expected the original"):
        read("ag_news")


def test_rows_that_are_not_utf8_are_set_aside(corpora: Path) -> None:
    path = corpora / "winogender/all_sentences.tsv"
    path.write_bytes(path.read_bytes() + b"cook.guest.1.male.txt\tThe caf\xe9 told the guest.\n")
    contents = read("winogender")
    assert [(s.line, s.reason) for s in contents.set_aside] == [
        (3, "'sentid' is 'cook.guest'"),
        (4, "'sentence' is not UTF-8"),
    ]


def test_reading_is_lazy(corpora: Path) -> None:
    path = corpora / "ag_news/test.csv"
    path.write_text(path.read_text() * 1000)
    first = next(iterate(CORPORA["ag_news"]))
    assert isinstance(first, Record)
    assert first.id == "test-1"


def test_an_unknown_corpus_is_refused() -> None:
    with pytest.raises(DataError, match=r"no corpus is called 'wino' .*; expected one of crows"):
        corpus_named("wino")
