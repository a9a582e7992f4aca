from __future__ import annotations

import pytest

from biasdiff.data.probe import ProbePair
from biasdiff.data.twins import difference, without_possessive


@pytest.mark.parametrize(
    ("more", "less", "expected"),
    [
        (
            'The woman said, "Men can\'t cook."',
            'The man said, "Men can\'t cook."',
            (("woman",), ("man",), "the _ said men can't cook"),
        ),
        (
            "An elderly man lost her keys",
            "A young man lost his keys",
            (("an", "elderly", "her"), ("a", "young", "his"), "_ man lost _ keys"),
        ),
        ("Same words.", "same words", ((), (), "same words")),
    ],
)
def test_difference(more: str, less: str, expected: tuple[object, object, str]) -> None:
    found = difference(ProbePair(more, less, "stereo", "gender", 0))
    assert (found.more, found.less, " ".join(found.masked)) == expected


def test_possessives() -> None:
    assert [without_possessive(w) for w in ("woman's", "woman’s", "boss", "it's")] == [
        "woman",
        "woman",
        "boss",
        "it",
    ]
