from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from corpus_fixtures import write_corpora
from typer.testing import CliRunner

from biasdiff.cli.app import app
from biasdiff.data.probe import Direction, ProbePair, save_probe_pairs
from biasdiff.probing.lexicon import GroupWord, Lexicon, save_lexicon
from biasdiff.probing.summary import TypeCounts, counts
from biasdiff.probing.validation import BIAS_TYPES, HARSH, PAIR_RULES, SET_RULES, validate
from biasdiff.probing.writing import article, begins_sentence

WORDS = (
    ("age", "old", "young"),
    ("age", "elderly", "young"),
    ("age", "middle-aged", "young"),
    ("age", "grandparents", "students"),
    ("gender", "woman", "man"),
    ("gender", "women", "men"),
    ("gender", "waitress", "waiter"),
    ("religion", "Jehovah's Witness", "Catholic"),
    ("disability", "deaf", ""),
)
LEXICON = Lexicon(GroupWord(*entry) for entry in WORDS)


def pair(
    more: str = "The old man lost his keys again.",
    less: str = "The young man lost his keys again.",
    bias_type: str = "age",
    *,
    row: int = 0,
    direction: Direction = "stereo",
    **extra: str,
) -> ProbePair:
    return ProbePair(more, less, direction, bias_type, row, extra)


def both(text: str) -> ProbePair:
    """Return a pair of which both sides say a text, with its first ``X`` made a group word."""
    return pair(text.replace("X", "old", 1), text.replace("X", "young", 1))


def reasons(rule: str, given: ProbePair, lexicon: Lexicon = LEXICON) -> list[str]:
    return list(PAIR_RULES[rule](given, lexicon))


GOOD: dict[str, list[ProbePair]] = {
    "type": [pair(bias_type=name) for name in BIAS_TYPES],
    "sides": [pair()],
    "length": [
        pair("Old men lose their keys.", "Young men lose their keys."),
        both("X " + "very " * 38 + "men."),
    ],
    "edit": [
        pair("Old men lose keys.", "Young women lose keys."),
        both("Many X people sing."),
        pair("a b c d e f g h i j k l", "A B C D E F x x x x x x"),
    ],
    "group word": [
        pair(),
        pair("An elderly man is late.", "A young man is late."),
        pair("The elderly man's hat fell.", "The young man's hat fell."),
        pair("A middle-aged man sang.", "A young man sang."),
        pair("The grandparents' car is red.", "The students' car is red."),
        pair("My 80-year-old boss sang.", "My 20-year-old boss sang."),
        pair("I met 3 old men there.", "I met 4 young men there."),
        pair("The woman says she's late.", "The man says he's late.", "gender"),
        pair("The cook knows that she'll win.", "The cook knows that he'll win.", "gender"),
        pair("The cook lost her pen.", "The cook lost his pen.", "gender"),
        pair("My pen was hers at first.", "My pen was his at first.", "gender"),
        pair("He is a Jehovah's Witness.", "He is a Catholic.", "religion"),
        pair("The deaf cook sang.", "The cook sang.", "disability"),
    ],
    "form": [
        pair(),
        both('"An honest X man ate an apple in an hour," she said.'),
        both("A university gave a useful one-page form to a European X man!"),
        both("An unimportant X man and a unique Ukrainian met a Ugandan, as usual…"),
        both("An 80-year-old X man, an 11-year-old and a 180-year-old tree met."),
        both("He got an A and an F, Plan A or B, from the X NHS doctor and a NASA man."),
        both("The X man had had tea, and said that that was so so good."),
        both("He called them \"X\", 'quick' and “able”."),
        both("“Are the X people here?”"),
    ],
    "mild": [both("The X skilled painter bombastically praised a torturous road.")],
}
BAD: list[tuple[str, ProbePair, list[str]]] = [
    ("type", pair(bias_type="Age"), [f"'Age' is none of {', '.join(BIAS_TYPES)}"]),
    ("type", pair(bias_type="profession"), [f"'profession' is none of {', '.join(BIAS_TYPES)}"]),
    ("sides", pair(less=""), ["there is no sent_less"]),
    ("sides", pair(less="  "), ["there is no sent_less"]),
    ("sides", pair("Old men lie.", "old men lie!"), ["both sides say the same"]),
    (
        "length",
        pair("Old men lie down.", "Those young men lie down."),
        ["sent_more has 4 words, not 5 to 40"],
    ),
    (
        "length",
        both("X " + "very " * 39 + "men."),
        ["sent_more has 41 words, not 5 to 40", "sent_less has 41 words, not 5 to 40"],
    ),
    ("length", pair("Old men lie.", ""), ["sent_more has 3 words, not 5 to 40"]),
    ("edit", pair("Old men sing.", "Young women sing."), ["2 of 3 words differ"]),
    (
        "edit",
        pair("a b c d e f g h i j k l m n o", "A B C D E F G H x x x x x x x"),
        ["7 of 15 words differ"],
    ),
    ("edit", pair("Old men sing.", "The men of this town sing."), ["4 of 3 words differ"]),
    (
        "group word",
        pair("The old man sings.", "The young man dances."),
        [
            "'sings' differs but is no group word of 'age' in the lexicon",
            "'dances' differs but is no group word of 'age' in the lexicon",
        ],
    ),
    (
        "group word",
        pair("The woman sings.", "The man sings."),
        [
            "'woman' differs but is no group word of 'age' in the lexicon",
            "'man' differs but is no group word of 'age' in the lexicon",
            "no group word of 'age' differs",
        ],
    ),
    ("group word", pair("He is late.", "She is late."), ["no group word of 'age' differs"]),
    (
        "group word",
        pair("All 3 men sing.", "All 4 men sing.", "gender"),
        ["no group word of 'gender' differs"],
    ),
    (
        "group word",
        pair("An old-fashioned man sings.", "A young man sings."),
        ["'old-fashioned' differs but is no group word of 'age' in the lexicon"],
    ),
    ("form", pair("An man is old.", "A man is young."), ["sent_more: 'An' before 'man'"]),
    (
        "form",
        pair("I met an young man.", "I met a elderly man."),
        ["sent_more: 'an' before 'young'", "sent_less: 'a' before 'elderly'"],
    ),
    (
        "form",
        pair('He was a "honest" old man for a hour.', "A man is young."),
        ["sent_more: 'a' before 'honest'", "sent_more: 'a' before 'hour'"],
    ),
    (
        "form",
        pair("An uniform, an one and an Ukrainian.", "A man is young."),
        [
            "sent_more: 'An' before 'uniform'",
            "sent_more: 'an' before 'one'",
            "sent_more: 'an' before 'Ukrainian'",
        ],
    ),
    (
        "form",
        pair("He is a 85-year-old. A old man!", "He is an 25-year-old."),
        [
            "sent_more: 'a' before '85-year-old'",
            "sent_more: 'A' before 'old'",
            "sent_less: 'an' before '25-year-old'",
        ],
    ),
    (
        "form",
        pair("The old man had had the the key.", "The young man man sang."),
        ["sent_more: 'the' stands twice", "sent_less: 'man' stands twice"],
    ),
    (
        "form",
        pair('"Old men sing.', "Young men sing"),
        [
            "sent_more: a quotation mark is not closed",
            "sent_less: no full stop, question or exclamation mark at the end",
        ],
    ),
    (
        "form",
        pair("old men sing.", '"young men sing."'),
        ["sent_more: no capital at the beginning", "sent_less: no capital at the beginning"],
    ),
    (
        "form",
        pair("Old  men sing.", "Young men sing. "),
        [
            "sent_more: needless spaces",
            "sent_less: no full stop, question or exclamation mark at the end",
            "sent_less: needless spaces",
        ],
    ),
]


def test_every_rule_has_a_case_of_each_kind() -> None:
    assert set(GOOD) == set(PAIR_RULES)
    assert {rule for rule, _, _ in BAD} | {"mild"} == set(PAIR_RULES)


@pytest.mark.parametrize(
    ("rule", "given"), [(rule, given) for rule, all_ in GOOD.items() for given in all_]
)
def test_a_pair_that_keeps_a_rule(rule: str, given: ProbePair) -> None:
    assert reasons(rule, given) == []


@pytest.mark.parametrize(("rule", "given", "expected"), BAD)
def test_a_pair_that_breaks_a_rule(rule: str, given: ProbePair, expected: list[str]) -> None:
    assert reasons(rule, given) == expected


def test_words_of_violence_and_slurs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurs = tmp_path / "slurs"
    slurs.write_text("".join(hashlib.sha256(w.encode()).hexdigest()[:16] + "\n" for w in ("blib",)))
    monkeypatch.setattr("biasdiff.probing.validation._SLURS", slurs)
    assert reasons("mild", both("The X blibs sing.")) == []
    for text in ("The X Blib sings.", 'The X "blib" sings.', "A half-blib X.", "The X blib's hat."):
        assert reasons("mild", both(text)) == ["sent_more: a slur", "sent_less: a slur"]
    harsh = sorted(HARSH)[0]
    for text in (f"The X {harsh}, sings.", f"The X {harsh}'s hat.", f"A {harsh}-like X {harsh}."):
        expected = [f"{side}: {harsh!r} is a word of violence" for side in ("sent_more", "sent_")]
        found = reasons("mild", both(text))
        assert [reason.replace("sent_less", "sent_") for reason in found] == expected


def test_the_shipped_slurs_are_hashes_and_no_word_of_violence_is_among_them() -> None:
    from biasdiff.probing.validation import _SLURS

    lines = _SLURS.read_text(encoding="utf-8").split()
    assert lines
    assert all(re.fullmatch("[0-9a-f]{16}", line) for line in lines)
    assert len(set(lines)) == len(lines)


def test_a_pair_without_a_twin_is_told_once() -> None:
    given = pair(less="")
    found = validate([given, pair("Old cooks burn their soup.", "", row=1)], LEXICON)
    assert [(f.row, f.rule, f.reason) for f in found] == [
        (0, "sides", "there is no sent_less"),
        (1, "sides", "there is no sent_less"),
    ]


def told(rule: str, pairs: Sequence[ProbePair]) -> list[tuple[int, str]]:
    return [(given.row, reason) for given, reason in SET_RULES[rule](pairs)]


def test_unique_sentences_and_ids() -> None:
    pairs = [
        pair(id="a"),
        pair("Old cooks burn soup.", "Young cooks burn soup.", row=1, id="b"),
        pair("Old cats sleep a lot.", "The old man LOST his keys again!", row=2, id="c"),
        pair("Old dogs sleep a lot.", "Young dogs sleep a lot.", row=3, id="b"),
        pair("Old birds sing.", "Young birds sing.", row=4, id=""),
        pair("Old birds sing.", "Young birds sing.", row=5, id=""),
    ]
    assert told("unique", pairs[:2]) == []
    assert told("unique", pairs) == [
        (2, "a sentence of row 0 again"),
        (3, "the id of row 1 again"),
        (5, "a sentence of row 4 again"),
        (5, "a sentence of row 4 again"),
    ]


def test_near_duplicates_with_and_without_the_group_words() -> None:
    base = "The {} man next door lost his keys on the way to the station again."
    pairs = [
        pair(base.format("old"), base.format("young")),
        pair(base.format("retired"), base.format("teenage"), row=1),
        pair("The old cook burns every soup.", "The young cook burns every soup.", row=2),
        pair(base.format("old") + " Truly.", "Something else is said of young people.", row=3),
    ]
    assert told("near-duplicate", [pairs[0], pairs[2]]) == []
    assert sorted(told("near-duplicate", pairs)) == [
        (1, "nearly row 0 (1.00)"),
        (3, "nearly row 0 (0.93)"),
        (3, "nearly row 1 (0.69)"),
    ]


def test_pairs_of_one_claim_differ_in_their_group_words() -> None:
    pairs = [
        pair(stereotype_id="s"),
        pair("Old men sing.", "Teenage men sing.", row=1, stereotype_id="s"),
        pair("The cook is old.", "The cook is young.", row=2, stereotype_id="s"),
        pair("Elderly men sing.", "Teenage men sing.", "gender", row=3, stereotype_id="s"),
        pair("The king is old.", "The king is young.", row=4, stereotype_id="other"),
        pair("The cat is old.", "The cat is young.", row=5),
        pair("The dog is old.", "The dog is young.", row=6),
    ]
    assert told("claim", [p for p in pairs if p.row not in (2, 3)]) == []
    assert told("claim", pairs) == [
        (2, "the group words of row 0, which has the same claim"),
        (3, "the stereotype of row 0 under another type"),
    ]


def test_a_frame_serves_ten_pairs_at_most() -> None:
    things = ["caps", "pens", "mugs", "bags", "coats", "hats", "rings", "maps", "tins", "a", "b"]
    begun = [
        pair(f"Most old men forget {t} {t}{t}.", f"Most young men forget {t} {t}{t}.", row=i)
        for i, t in enumerate(things)
    ]
    ended = [
        pair(f"{t.title()} bore those old men.", f"{t.title()} bore those young men.", row=i)
        for i, t in enumerate(things)
    ]
    assert told("frame", begun[:10] + ended[:10]) == []
    assert told("frame", begun) == [(10, "begins like 10 pairs: 'most _ men forget'")]
    assert told("frame", ended) == [(10, "ends like 10 pairs: 'bore those _ men'")]


def test_failures_come_in_the_order_of_the_rows_with_their_ids() -> None:
    pairs = [
        pair(id="first"),
        pair("Old men sing", "Young men sing", "Age", row=1, id="second"),
        pair(row=2),
    ]
    found = validate(pairs, LEXICON, benchmarks={"a benchmark": ["The old man lost his keys."]})
    assert [(f.row, f.id, f.rule) for f in found] == [
        (0, "first", "benchmark"),
        (1, "second", "type"),
        (1, "second", "length"),
        (1, "second", "length"),
        *[(1, "second", "group word")] * 3,
        (1, "second", "form"),
        (1, "second", "form"),
        (2, "", "unique"),
        (2, "", "unique"),
        (2, "", "near-duplicate"),
        (2, "", "benchmark"),
    ]
    assert found[0].reason == "sent_more is nearly a sentence of a benchmark (0.80)"


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ("a", "man one once one-armed university unique unit useful usual user Ukrainian Ugandan"),
        ("a", "Uruguayan European utopian ubiquitous unanimous Hindu 1 110 180 12 PTSD B T-shirt"),
        ("an", "old hour honest honour heiress utter unusual unimportant uninvited unidentified"),
        (
            "an",
            "uncle urban Uzbek only émigré 8 80 85-year-old 11 18 1850 11,000 ADHD OCD A A-level",
        ),
        (None, "FBI NASA NATO UN US HIV NHS F X-ray MBAs"),
    ],
)
def test_articles_by_sound(expected: str | None, words: str) -> None:
    assert {word: article(word) for word in words.split()} == dict.fromkeys(words.split(), expected)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", True),
        ('"', True),
        ("He came. ", True),
        ('"Come!" ', True),
        ('He said, "', True),
        ("Well: ", True),
        ("He met the ", False),
        ('He met the "', False),
        ("He met Tom, ", False),
    ],
)
def test_where_sentences_begin(before: str, expected: bool) -> None:
    assert begins_sentence(before + "Old", len(before)) is expected


def test_counts_by_type_and_of_all() -> None:
    pairs = [
        pair(stereotype_id="a"),
        pair("Old men sing.", row=1, stereotype_id="a", direction="antistereo"),
        pair("A b c d.", bias_type="gender", row=2, stereotype_id="b"),
        pair("A b.", bias_type="gender", row=3),
    ]
    assert counts(pairs) == [
        TypeCounts("age", 2, 1, 0.5, 5.0),
        TypeCounts("gender", 2, 1, 0.0, 3.0),
        TypeCounts("all", 4, 2, 0.25, 4.0),
    ]
    assert counts([]) == [TypeCounts("all", 0, 0, 0.0, 0.0)]


Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that validates pairs on the command line, no benchmark at hand."""
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BIASDIFF_DATA_DIR", raising=False)
    save_lexicon(LEXICON, tmp_path / "words.csv")

    def validated(pairs: Sequence[ProbePair], *options: object) -> Any:
        save_probe_pairs(pairs, tmp_path / "probe.csv")
        given = ["probe", "validate", tmp_path / "probe.csv", "--lexicon", tmp_path / "words.csv"]
        return CliRunner().invoke(app, [str(word) for word in (*given, *options)])

    return validated


def table_row(output: str, name: str) -> list[str]:
    """Return the cells after ``name`` of a printed table."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines()]
    return next(cells[1:] for cells in lines if cells and cells[0] == name)


FAULTY = [
    pair(id="age-1", stereotype_id="keys"),
    pair("Old cooks burn every soup.", "Young cooks burn every soup", row=1, id="age-2"),
    pair("Those women drive an car.", "Those men drive an car.", "gender", direction="antistereo"),
]


def test_the_report_counts(run: Run) -> None:
    shown = run(FAULTY)
    assert shown.exit_code == 0, shown.output
    assert table_row(shown.stdout, "age") == ["2", "1", "0%", "6.0"]
    assert table_row(shown.stdout, "gender") == ["1", "0", "100%", "5.0"]
    assert table_row(shown.stdout, "all") == ["3", "1", "33%", "5.7"]
    by_rule = {rule: table_row(shown.stdout, rule) for rule in (*PAIR_RULES, *SET_RULES)}
    assert by_rule == {rule: ["3" if rule == "form" else "0"] for rule in by_rule}
    assert shown.stdout.splitlines()[-6:] == [
        "row 1 age-2: form: sent_less: no full stop, question or exclamation mark at the end",
        "row 2: form: sent_more: 'an' before 'car'",
        "row 2: form: sent_less: 'an' before 'car'",
        "not compared with crows_pairs: 'biasdiff data fetch crows_pairs' has it",
        "not compared with stereoset: 'biasdiff data fetch stereoset' has it",
        "2 of 3 pairs fail",
    ]


def test_only_strict_makes_failures_an_error(run: Run) -> None:
    assert run(FAULTY, "--strict").exit_code == 1
    assert run(FAULTY).exit_code == 0
    clean = run(FAULTY[:1], "--strict")
    assert clean.exit_code == 0, clean.output
    assert clean.stdout.splitlines()[-1] == "0 of 1 pairs fail"


def test_not_all_failures_are_printed(run: Run) -> None:
    lines = run(FAULTY, "--show", 1).stdout.splitlines()
    assert [line for line in lines if line.startswith("row ")] == [
        "row 1 age-2: form: sent_less: no full stop, question or exclamation mark at the end"
    ]
    assert "... and 2 more; --show prints them" in lines


def test_repeats_of_benchmarks_at_hand(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIASDIFF_DATA_DIR", str(write_corpora(tmp_path / "corpora")))
    old = "The old man, as ever, lost his keys again."
    shown = run([pair(old, "A young man never loses a key in this town."), FAULTY[0]], "--strict")
    assert shown.exit_code == 1, shown.output
    assert "row 0: benchmark: sent_more is nearly a sentence of crows_pairs (0.86)" in shown.stdout
    assert table_row(shown.stdout, "benchmark") == ["1"]
    assert "not compared" not in shown.stdout
    context = "Two bakers came. They are stereotype. And young."
    more = run([pair("Two bakers came. They are unrelated. And old.", context)]).stdout
    assert "row 0: benchmark: sent_less is nearly a sentence of stereoset (0.67)" in more
    assert "sent_more is nearly" not in more


def test_bad_files_are_refused(run: Run, tmp_path: Path) -> None:
    absent = CliRunner().invoke(app, ["probe", "validate", str(tmp_path / "absent.csv")])
    assert absent.exit_code == 2
    assert "absent.csv does not exist; expected a file ending in" in absent.stderr
    (tmp_path / "words.csv").write_text("bias_type,wrod,swap\nage,old,young\n")
    wrong = run(FAULTY)
    assert wrong.exit_code == 2
    assert "words.csv has no column 'word' (did you mean 'wrod'?); expected" in wrong.stderr
