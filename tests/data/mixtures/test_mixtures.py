"""Mixtures of the shipped pairs, and of the corpora in their fixtures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pandas
import pytest
from corpus_fixtures import write_corpora

from biasdiff.data.draws import shipped_draws
from biasdiff.data.mixtures.build import Mixture, build_mixture
from biasdiff.data.mixtures.card import card, card_markdown
from biasdiff.data.mixtures.crossed import balanced_cycles, crossed
from biasdiff.data.mixtures.guards import protected_sets, screen, without_stereotypes
from biasdiff.data.mixtures.matched import matched
from biasdiff.data.mixtures.recipes import MIXTURES, Part, Recipe, recipe_named
from biasdiff.data.mixtures.rows import MixtureRow, pool, sample
from biasdiff.data.mixtures.separability import separability
from biasdiff.data.near_duplicates import near_duplicates, normalised
from biasdiff.data.probe import ProbePair
from biasdiff.data.sources.finding import DATA_DIR
from biasdiff.errors import DataError
from biasdiff.pipeline.mixtures import build_to_file

SHIPPED = ("shipped_mix", "matched", "crossed")


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_DIR, str(write_corpora(tmp_path / "data")))
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture
def nothing_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_DIR, raising=False)
    monkeypatch.setenv("BIASDIFF_CACHE", str(tmp_path / "cache"))


def row(text: str, truth: int = 0, *, source: str = "facts", stereotype: str = "") -> MixtureRow:
    return MixtureRow(f"{source}:{text}", text, truth, None, source, text, stereotype)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.usefixtures("nothing_at_hand")
def test_guards_hold_on_what_was_built(name: str) -> None:
    mixture = build_mixture(MIXTURES[name], size=400, seed=1)
    assert len(mixture.rows) == 400
    assert len({r.id for r in mixture.rows}) == 400
    assert len({normalised(r.text) for r in mixture.rows}) == 400
    draws = shipped_draws()
    kept_apart = [*draws.reference, *draws.validation, *draws.test]
    texts = [text for pair in kept_apart for text in (pair.sent_more, pair.sent_less)]
    assert not list(near_duplicates([r.text for r in mixture.rows], texts))
    named = {r.stereotype_id for r in mixture.rows} - {""}
    assert named
    assert not named & {p.stereotype_id for p in kept_apart}
    anti = {p.sent_more for p in draws.rest if p.stereo_antistereo == "antistereo"}
    assert not anti & {r.text for r in mixture.rows}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.usefixtures("nothing_at_hand")
def test_the_same_seed_gives_the_same_rows(name: str) -> None:
    def built(seed: int) -> list[MixtureRow]:
        return build_mixture(MIXTURES[name], size=100, seed=seed).rows

    assert built(5) == built(5)
    assert built(5) != built(6)


def test_matched_classes_share_no_stereotype() -> None:
    rows = matched(600, 0)
    sides = {t: {r.stereotype_id for r in rows if r.is_bias == t} for t in (0, 1)}
    assert not sides[0] & sides[1]
    assert Counter(r.is_bias for r in rows) == {0: 300, 1: 300}
    types = {t: Counter(r.bias_type for r in rows if r.is_bias == t) for t in (0, 1)}
    assert all(abs(types[0][kind] - types[1][kind]) <= 12 for kind in types[0])


def test_crossed_balances_every_word_in_every_cycle() -> None:
    rows = crossed(800, 0)
    assert len(rows) == 800
    for group in {r.group for r in rows}:
        words = {
            truth: Counter(
                word.removesuffix("'s")
                for r in rows
                if r.group == group and r.is_bias == truth
                for word in normalised(r.text).split()
            )
            for truth in (0, 1)
        }
        assert words[0] == words[1], group


def test_a_bag_of_words_tells_facts_from_stereotypes_but_not_crossed_classes() -> None:
    def auroc(name: str) -> float:
        return build_mixture(MIXTURES[name], size=800).separability.bag_of_words

    assert 0.45 <= auroc("crossed") <= 0.55
    assert auroc("shipped_mix") > 0.8


def test_balanced_cycles_are_a_largest_balanced_set() -> None:
    edges = [("a", "b"), ("b", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "e")]
    cycles = balanced_cycles(edges)
    assert sorted(map(len, cycles)) == [2, 3]
    for cycle in cycles:
        heads = Counter(edges[i][1] for i in cycle)
        assert heads == Counter(edges[i][0] for i in cycle)
    used = [i for cycle in cycles for i in cycle]
    assert len(used) == len(set(used)) == 5
    assert balanced_cycles([]) == []
    assert balanced_cycles([("a", "b")]) == []


def test_more_than_there_is() -> None:
    with pytest.raises(
        DataError, match="crossed: 90000 rows asked for; expected an even number up"
    ):
        crossed(90000, 0)
    with pytest.raises(DataError, match="matched: 90000 rows asked for; expected at most "):
        matched(90000, 0)
    with pytest.raises(DataError, match="shipped_mix: 27000 biased rows of probing_set asked for"):
        build_mixture(MIXTURES["shipped_mix"], size=90000)


def test_wino_and_balance_of_fixtures(corpora: Path) -> None:
    wino = build_mixture(MIXTURES["wino"], size=4)
    assert Counter(r.is_bias for r in wino.rows) == {0: 2, 1: 2}
    checks = {c.name: c for c in wino.checks}
    assert checks["winobias"].note == "the mixture is made of it; do not evaluate on it"
    assert checks["crows_pairs"].texts > 0
    bug = pool("bug")
    assert [r.is_bias for r in bug.rows] == [1, 0]
    assert bug.set_aside == 1
    assert bug.licence == "MIT"
    with pytest.raises(DataError, match="balance: 25 biased rows of bug asked for; expected at mo"):
        build_mixture(MIXTURES["balance"], size=100)


@pytest.mark.usefixtures("nothing_at_hand")
def test_sets_that_are_not_at_hand_are_named() -> None:
    _, left_out = protected_sets(None, own=())
    assert left_out["stereoset"] == "not at hand; 'biasdiff data fetch stereoset' brings it"


def test_screen_drops_exact_and_near_repeats() -> None:
    protected = {"test draw": ["The old man lost his keys again in the park."]}
    rows = [
        row("the OLD man lost his keys again in the park"),
        row("The old man lost his keys again in the bus."),
        row("Nothing like it."),
    ]
    kept, checks = screen(rows, protected)
    assert [r.text for r in kept] == ["Nothing like it."]
    assert (checks[0].exact, checks[0].near, checks[0].texts) == (1, 1, 1)


def test_texts_of_a_users_probe_and_its_stereotypes_are_kept_out() -> None:
    rest = shipped_draws().rest
    stereotypes = [p for p in rest if p.stereo_antistereo == "stereo"]
    probe = stereotypes[:40]
    mixture = build_mixture(MIXTURES["shipped_mix"], size=400, probe=probe)
    assert not {r.stereotype_id for r in mixture.rows} & {p.stereotype_id for p in probe}
    assert mixture.shared_stereotypes >= 40
    by_sentence = build_mixture(MIXTURES["shipped_mix"], size=400, probe=probe, disjoint="sentence")
    assert by_sentence.shared_stereotypes == 0
    assert {c.name: c.exact for c in by_sentence.checks}["probe"] == 40


def test_a_probe_without_names_cannot_be_kept_disjoint() -> None:
    probe = [ProbePair("a b c", "a b d", "stereo", "age", 0)]
    with pytest.raises(DataError, match="the probe has pairs without 'stereotype_id'"):
        without_stereotypes([row("x", stereotype="s")], probe)


def test_shares_and_rebalancing() -> None:
    recipe = MIXTURES["balance"].rebalanced(0.5)
    assert recipe.biased_share == pytest.approx(0.5)
    assert sum(p.share for p in recipe.parts) == pytest.approx(1)
    ratio = recipe.parts[1].share / recipe.parts[0].share
    assert ratio == pytest.approx(0.35 / 0.25)
    with pytest.raises(DataError, match="'matched' is half and half by construction"):
        MIXTURES["matched"].rebalanced(0.3)
    with pytest.raises(DataError, match="'one' has only one class; expected a biased share of 0"):
        Recipe("one", "", (Part("facts", 0, 1.0),)).rebalanced(0.3)


def test_stratified_sampling() -> None:
    rows = [
        MixtureRow(f"{kind}{i}", f"{kind} {i}", 1, kind, "x", "g")
        for kind, count in (("age", 60), ("gender", 30), ("religion", 10))
        for i in range(count)
    ]

    def types(**options: bool) -> Counter[str | None]:
        return Counter(r.bias_type for r in sample(rows, 30, seed=0, **options))

    assert types() == {"age": 18, "gender": 9, "religion": 3}
    assert types(equal_types=True) == {"age": 10, "gender": 10, "religion": 10}


def test_unknown_names() -> None:
    with pytest.raises(DataError, match=r"no mixture is called 'croses' \(did you mean 'crossed'"):
        recipe_named("croses")
    with pytest.raises(DataError, match=r"'ag_newz' is neither a corpus nor a file \(did you mean"):
        pool("ag_newz")


def test_a_recipe_of_the_users_own(tmp_path: Path) -> None:
    texts = tmp_path / "mine.csv"
    rows = "".join(f"Own text number {i},{i % 2}\n" for i in range(20))
    texts.write_text(f"text,is_bias\n{rows}")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: mine\nsize: 20\nseed: 3\nparts:\n"
        f"  - {{source: {texts}, is_bias: 1, share: 0.25}}\n"
        "  - {source: facts, is_bias: 0, share: 0.75}\n"
    )
    for ending in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"train.{ending}"
        found = build_to_file(str(recipe), out)
        readers = {
            "csv": pandas.read_csv,
            "parquet": pandas.read_parquet,
            "jsonl": lambda p: pandas.read_json(p, lines=True),
        }
        table = readers[ending](out)
        assert table["is_bias"].sum() == 5
        assert len(table) == 20
        assert set(table["source"]) == {"mine.csv", "facts"}
        assert set(table["licence"]) == {"the user's own", "Apache-2.0"}
        assert json.loads((tmp_path / "train.card.json").read_text()) == found
        assert (tmp_path / "train.card.md").read_text().startswith("# Mixture `mine`")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts: []", r"config key 'parts' is \[\]"),
        ("name: a", "config key 'parts' is missing; expected it; add it"),
        ("parts: [{source: facts, is_bias: 0, share: 0.5}]", "expected shares that add up to 1"),
        (
            "sice: 4\nparts: [{source: facts, is_bias: 0, share: 1}]",
            r"unknown config key 'sice' \(did you mean 'size'\?\)",
        ),
        ("parts: [{source: facts, is_bias: 2, share: 1}]", r"'parts\.0\.is_bias' is 2; expected 0"),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(Exception, match=message):
        build_to_file(str(recipe), tmp_path / "out.csv")


def test_other_endings_and_unlabelled_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.txt ends in '\.txt'; expected one of \.jsonl"):
        build_to_file("shipped_mix", tmp_path / "train.txt", size=10)
    (tmp_path / "bare.csv").write_text("text\nhello\n")
    with pytest.raises(DataError, match="1 of 1 rows have no 'is_bias'"):
        pool(str(tmp_path / "bare.csv"))


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return build_mixture(MIXTURES["shipped_mix"], size=200)


def test_the_card_says_what_is_in_the_mixture(mixture: Mixture) -> None:
    found = card(mixture, b"bytes")
    assert found["counts"]["biased"] == 60
    assert found["counts"]["by_source"]["facts"] == {"biased": 0, "other": 140}
    assert found["sources"]["probing_set"]["licence"] == "Apache-2.0"
    lengths = [len(r.text.split()) for r in mixture.rows if r.is_bias]
    assert found["words"]["biased"]["mean"] == pytest.approx(sum(lengths) / 60, abs=0.01)
    assert found["auroc"]["bag_of_words"] > 0.7
    assert {c["name"] for c in found["overlap"]["checks"]} >= {"probe", "test draw", "seat"}
    text = card_markdown(found)
    assert "none is a statement of fact" in text
    assert "| facts | Apache-2.0 |" in text


def test_separability_of_known_cues() -> None:
    texts = [f"word{i} short" for i in range(20)]
    texts += [f"word{i} rather longer text" for i in range(20)]
    truth = [0] * 20 + [1] * 20
    groups = [str(i) for i in range(40)]
    found = separability(texts, truth, groups)
    assert found.length == 1.0
    assert found.bag_of_words == 1.0
    one_class = separability(["a", "b"], [1, 1], ["1", "2"])
    assert one_class.length != one_class.length
    few = separability(["a", "b c"], [0, 1], ["1", "2"])
    assert few.length == 1.0
    assert few.bag_of_words != few.bag_of_words
