from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from biasdiff.cli.app import app
from biasdiff.data.probe import ProbePair, load_probe_pairs, save_probe_pairs
from biasdiff.probing.augmentation import augment, swap_group_words
from biasdiff.probing.lexicon import GroupWord, Lexicon, save_lexicon

WORDS = {
    "gender": {
        "woman": "man",
        "women": "men",
        "man": "woman",
        "men": "women",
        "old woman": "elderly gentleman",
        "lady": "gentleman",
        "ladies": "gentlemen",
        "gentlemen": "ladies",
        "actress": "actor",
        "actor": "actress",
        "waitress": "waiter",
        "waiter": "waitress",
    },
    "age": {
        "adults": "children",
        "children": "adults",
        "old": "young",
        "old folk": "teenage boys",
        "adult": "teenager",
    },
    "religion": {
        "Muslim": "atheist",
        "atheist": "Muslim",
        "Catholic": "Jewish",
        "non-Muslim": "non-Catholic",
    },
    "nationality": {"Polish": "English", "American": "Ukrainian", "Ukrainian": "American"},
    "race-color": {"Black": "white", "white": "Black"},
    "disability": {"deaf": "ADHD", "short": "FBI", "hearing": ""},
}
LEXICON = Lexicon(
    GroupWord(bias_type, word, swap)
    for bias_type, swaps in WORDS.items()
    for word, swap in swaps.items()
)


@pytest.mark.parametrize(
    ("bias_type", "text", "twin"),
    [
        # case
        ("gender", "Women like tea, but men do not.", "Men like tea, but women do not."),
        ("gender", "WOMEN LIKE TEA, AND SO DO I.", "MEN LIKE TEA, AND SO DO I."),
        ("gender", "The Lady of the house sang.", "The Gentleman of the house sang."),
        ("religion", "The Muslim baker sang.", "The atheist baker sang."),
        ("religion", "Muslim bakers sing.", "Atheist bakers sing."),
        ("religion", 'He said, "Muslim bakers sing."', 'He said, "Atheist bakers sing."'),
        ("religion", 'The so-called "Muslim" baker.', 'The so-called "atheist" baker.'),
        ("religion", "The atheist baker sang.", "The Muslim baker sang."),
        ("religion", "Non-Muslim bakers sing.", "Non-Catholic bakers sing."),
        ("race-color", "The Black cook sang.", "The white cook sang."),
        ("race-color", "The white cook sang.", "The Black cook sang."),
        ("nationality", "A Polish cook will polish it.", "An English cook will polish it."),
        ("religion", "He has catholic tastes.", None),
        # possessives
        ("gender", "The woman's hat fell.", "The man's hat fell."),
        ("gender", "The woman’s hat fell.", "The man’s hat fell."),
        ("gender", "The women's room is here.", "The men's room is here."),
        ("gender", "The ladies' room is here.", "The gentlemen's room is here."),
        ("gender", "The gentlemen's room is here.", "The ladies' room is here."),
        ("gender", "The waiter's hat fell.", "The waitress's hat fell."),
        ("age", "The children's toys, not the adults'.", "The adults' toys, not the children's."),
        ("gender", "'I like the ladies' he said.", "'I like the gentlemen' she said."),
        # articles
        ("gender", "A woman and an actor met.", "A man and an actress met."),
        ("age", "An adult sat by a children's toy.", "A teenager sat by an adults' toy."),
        ("gender", "He met an old woman.", "She met an elderly gentleman."),
        ("gender", "An old woman slept.", "An elderly gentleman slept."),
        ("nationality", "An American and a Ukrainian.", "A Ukrainian and an American."),
        ("nationality", 'He is a "Polish" cook.', 'He is an "English" cook.'),
        ("disability", "A deaf boy slept.", "An ADHD boy slept."),
        ("disability", "A short boy slept.", "A FBI boy slept."),
        (
            "gender",
            "An 80-year-old woman got an A in an hour at a university.",
            "An 80-year-old man got an A in an hour at a university.",
        ),
        ("gender", "A MAN SLEPT.", "A WOMAN SLEPT."),
        ("age", "AN ADULT SLEPT.", "A TEENAGER SLEPT."),
        # plural, longest first, words inside words
        ("gender", "The women saw a woman.", "The men saw a man."),
        ("gender", "The old woman and the woman.", "The elderly gentleman and the man."),
        ("age", "The old folk saw old cats.", "The teenage boys saw young cats."),
        ("gender", "An old-fashioned man slept.", "An old-fashioned woman slept."),
        ("gender", "Mankind and womanhood, man-made.", None),
        ("age", "Gold holders scold bolder colds.", None),
        ("age", "The old-timer and the year-old.", None),
        ("disability", "The hearing boy slept.", None),
        ("physical-appearance", "The old woman slept.", None),
        # pronouns, for gender only
        ("gender", "He saw himself, and she him.", "She saw herself, and he her."),
        ("gender", "His car is red.", "Her car is red."),
        ("gender", "That car is his.", "That car is hers."),
        ("gender", "That car is hers, not his.", "That car is his, not hers."),
        ("gender", "Her in-laws like her.", "His in-laws like him."),
        (
            "gender",
            "I told her why her 80th year was bad.",
            "I told him why his 80th year was bad.",
        ),
        ("gender", "Give her that, or her “friend”.", "Give him that, or his “friend”."),
        ("gender", "She knows she'll win, she's able.", "He knows he'll win, he's able."),
        ("gender", "Look at the shelf there.", None),
        ("age", "She told her old mother.", "She told her young mother."),
    ],
)
def test_group_words_are_exchanged(bias_type: str, text: str, twin: str | None) -> None:
    assert swap_group_words(text, bias_type, LEXICON) == twin


def test_a_type_without_swaps() -> None:
    assert swap_group_words("The old cat.", "age", Lexicon([])) is None
    assert swap_group_words("He slept.", "gender", Lexicon([])) == "She slept."


def test_an_exchange_that_changes_nothing_is_no_twin() -> None:
    same = Lexicon([GroupWord("age", "old", "old")])
    assert swap_group_words("The old cat.", "age", same) is None


def test_swapping_twice_gives_the_sentence_again() -> None:
    for text in ("The women gave the waiter his hat.", "An actor lost hers at the ladies' ball."):
        twin = swap_group_words(text, "gender", LEXICON)
        assert twin is not None
        assert twin != text
        assert swap_group_words(twin, "gender", LEXICON) == text


PAIRS = [
    ProbePair("Old cats sleep.", "Wild cats sleep.", "stereo", "age", 0, {"id": "a"}),
    ProbePair("The women sing.", "", "antistereo", "gender", 1, {"id": "b"}),
    ProbePair("The cats sing.", " ", "stereo", "gender", 2, {"id": "c"}),
    ProbePair("The women sing.", "", "stereo", "age", 3, {"id": "d"}),
]


def test_only_sentences_without_a_twin_are_given_one() -> None:
    found = augment(PAIRS, LEXICON)
    assert found.made == 1
    assert found.pairs[0] is PAIRS[0]
    twin = ProbePair("The women sing.", "The men sing.", "antistereo", "gender", 1, {"id": "b"})
    assert found.pairs[1:] == [twin]
    assert found.left == PAIRS[2:]


def test_the_command_sets_sentences_without_a_group_word_aside(tmp_path: Path) -> None:
    save_probe_pairs(PAIRS, tmp_path / "probe.csv")
    save_lexicon(LEXICON, tmp_path / "words.csv")
    out, aside = tmp_path / "new folder/out.csv", tmp_path / "new folder/out.without-twin.csv"
    files = [str(tmp_path / "probe.csv"), "--out", str(out)]
    words = ["--lexicon", str(tmp_path / "words.csv")]
    result = CliRunner().invoke(app, ["probe", "augment", *files, *words])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"1 twins made, 2 pairs in {out}",
        f"2 sentences hold no word of the lexicon: {aside}",
        "a swap may not fit its sentence: read the twins ('biasdiff probe review')",
    ]
    assert [(p.extra["id"], p.sent_less) for p in load_probe_pairs(out)] == [
        ("a", "Wild cats sleep."),
        ("b", "The men sing."),
    ]
    assert [p.extra["id"] for p in load_probe_pairs(aside)] == ["c", "d"]


def test_no_file_is_set_aside_where_all_have_twins(tmp_path: Path) -> None:
    save_probe_pairs(PAIRS[:2], tmp_path / "probe.csv")
    save_lexicon(LEXICON, tmp_path / "words.csv")
    files = [str(tmp_path / "probe.csv"), "--out", str(tmp_path / "out.csv")]
    words = ["--lexicon", str(tmp_path / "words.csv")]
    result = CliRunner().invoke(app, ["probe", "augment", *files, *words])
    assert result.exit_code == 0, result.output
    assert "sentences hold no word" not in result.stdout
    assert not (tmp_path / "out.without-twin.csv").exists()
