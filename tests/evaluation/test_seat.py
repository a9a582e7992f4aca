from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from corpus_fixtures import write_corpora
from tokenizers.processors import TemplateProcessing

from biasdiff.data.sources.finding import DATA_DIR
from biasdiff.data.sources.seat import SENTENCE_TESTS, WORD_TESTS, AssociationTest
from biasdiff.errors import ConfigError, DataError, NonFiniteError
from biasdiff.evaluation import seat
from biasdiff.evaluation.benchmark import Inputs, Subject
from biasdiff.evaluation.registry import BENCHMARKS
from biasdiff.evaluation.seat import (
    BENCHMARK,
    BIAS_TYPES,
    SOCIAL_TESTS,
    compare_seat,
    embed,
    score_tests,
    seat_metrics,
)
from biasdiff.functional.association import effect_size, parametric_p, permutation_p
from biasdiff.functional.statistics import holm
from tiny_models import ARCHITECTURES, SENTENCES

Loader = Callable[..., tuple[Any, Any]]
TESTS = [
    AssociationTest(
        "sent-weat6",
        ("The old man slept.", "He is here."),
        ("The old woman slept.", "She is here."),
        ("The engineer fixed it.", "The boss shouted."),
        ("The cat sleeps.", "Rain falls.", "The house is warm."),
        ("Male", "Female", "Career", "Family"),
    ),
    AssociationTest(
        "weat7",
        ("math", "He is here."),
        ("art", "poetry"),
        ("Rain falls.",),
        ("The house is warm.",),
        ("Math", "Arts", "A", "B"),
    ),
]


@pytest.fixture
def corpora(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    return write_corpora(tmp_path)


def subject(loaded: tuple[Any, Any], max_tokens: int = 200, max_length: int = 64) -> Subject:
    return Subject(*loaded, max_length=max_length, max_tokens=max_tokens)


def slow_embedding(model: Any, tokenizer: Any, text: str, how: str, layer: int) -> torch.Tensor:
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
    return states.mean(0) if how == "mean" else states[-1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("how", "layer"), [("mean", -1), ("last", 1), ("mean", 0), ("last", 2)])
def test_embeddings_one_sentence_at_a_time(
    tiny: Loader, architecture: str, how: str, layer: int
) -> None:
    model, tokenizer = tiny(architecture)
    found = embed(subject((model, tokenizer), 60), SENTENCES, embedding=how, layer=layer)
    for vector, text in zip(found, SENTENCES, strict=True):
        slow = slow_embedding(model, tokenizer, text, how, layer)
        torch.testing.assert_close(vector, slow, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("how", ["mean", "last"])
def test_padding_and_batches_do_not_matter(
    tiny: Loader, architecture: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny(architecture)
    alone = embed(subject(loaded, 1), SENTENCES, embedding=how)
    together = embed(subject(loaded, 10_000), SENTENCES, embedding=how)
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=2e-4)
    loaded[1].padding_side = "left"
    monkeypatch.setattr(seat, "make_batch", partial(seat.make_batch, side="left", pad_id=7))
    left = embed(subject(loaded, 10_000), SENTENCES, embedding=how)
    torch.testing.assert_close(left, alone, atol=2e-5, rtol=2e-4)


def test_no_token_is_added(tiny: Loader) -> None:
    model, tokenizer = tiny("llama")
    bare = embed(subject((model, tokenizer)), SENTENCES)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert tokenizer("Rain")["input_ids"][0] == 0
    torch.testing.assert_close(embed(subject((model, tokenizer)), SENTENCES), bare)


def test_an_adapter_counts(adapted: Loader) -> None:
    model, tokenizer = adapted("llama")
    found = embed(subject((model, tokenizer)), SENTENCES[:1])[0]
    slow = slow_embedding(model, tokenizer, SENTENCES[0], "mean", -1)
    torch.testing.assert_close(found, slow, atol=2e-5, rtol=2e-4)
    with model.disable_adapter():
        assert not torch.allclose(embed(subject((model, tokenizer)), SENTENCES[:1])[0], found)


def test_each_distinct_sentence_is_encoded_once(
    tiny: Loader, corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny("llama")
    seen: list[int] = []
    decoder = model.get_decoder()
    decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    frame = BENCHMARK.score(subject((model, tokenizer), 50), Inputs())
    assert sum(seen) == 8  # every test of the fixture has the same 4 x 2 sentences
    assert len(seen) > 1
    assert len(frame) == 50 * 4


def slow_frame(model: Any, tokenizer: Any) -> list[float]:
    values = []
    for test in TESTS:
        sets = [
            [slow_embedding(model, tokenizer, text, "mean", -1) for text in texts]
            for texts in (test.targ1, test.targ2, test.attr1, test.attr2)
        ]
        for w in (*sets[0], *sets[1]):
            a, b = (
                torch.stack([torch.cosine_similarity(w, v, dim=0) for v in side]).mean()
                for side in sets[2:]
            )
            values.append(float(a - b))
    return values


def test_the_frame_of_two_tests(tiny: Loader) -> None:
    model, tokenizer = tiny("gpt2")
    frame = score_tests(subject((model, tokenizer)), TESTS)
    assert frame["association"].tolist() == pytest.approx(slow_frame(model, tokenizer), abs=1e-5)
    assert frame["row"].tolist()[:5] == [
        "sent-weat6-targ1-0", "sent-weat6-targ1-1", "sent-weat6-targ2-0", "sent-weat6-targ2-1",
        "weat7-targ1-0",
    ]  # fmt: skip
    assert frame["category"].tolist() == ["Male"] * 2 + ["Female"] * 2 + ["Math"] * 2 + ["Arts"] * 2
    assert frame["role"].tolist() == ["targ1", "targ1", "targ2", "targ2"] * 2
    assert set(frame["bias_type"]) == {"gender"}
    assert frame["sentence"][1] == frame["sentence"][5]  # "He is here." in both
    assert frame["sentence"].nunique() == 7


def made_frame(seed: int, *, shift: float = 0.0, parametric: bool = False) -> pd.DataFrame:
    """Return a frame of all tests with made associations; tests of one type share sentences."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number, test in enumerate((*WORD_TESTS, *SENTENCE_TESTS)):
        size = 4 if number % 2 else 11
        for side, role in enumerate(("targ1", "targ2")):
            rows += [
                {
                    "row": f"{test}-{role}-{i}",
                    "test": test,
                    "role": role,
                    "category": role,
                    "bias_type": BIAS_TYPES[test],
                    "sentence": 1000 * (number // 7) + 100 * side + i,
                    "association": float(random.normal(shift * (1 - side), 1)),
                }
                for i in range(size)
            ]
    return pd.DataFrame(rows).assign(parametric=parametric, seed=0)


def sides(frame: pd.DataFrame, test: str) -> tuple[np.ndarray, np.ndarray]:
    part = frame[frame["test"] == test]
    first, second = (
        part.loc[part["role"] == role, "association"].to_numpy() for role in ("targ1", "targ2")
    )
    return first, second


def test_metrics_by_hand() -> None:
    frame = made_frame(0, shift=0.5)
    metrics = seat_metrics(frame)
    p_values = []
    for test in (*WORD_TESTS, *SENTENCE_TESTS):
        first, second = sides(frame, test)
        metric = metrics[f"d/{test}"]
        assert metric.value == pytest.approx(effect_size(first, second))
        assert metric.n == len(first) + len(second)
        expected = permutation_p(np.concatenate([first, second])[None], len(first))[0]
        assert metric.p_value == pytest.approx(expected, abs=1e-9)
        assert metric.interval is not None
        assert metric.interval[0] < metric.value < metric.interval[1]
        p_values.append(expected)
    adjusted = [metrics[f"d/{test}"].p_adjusted for test in (*WORD_TESTS, *SENTENCE_TESTS)]
    assert adjusted == pytest.approx(holm(p_values))
    for bias_type, names in SOCIAL_TESTS.items():
        sizes = [abs(metrics[f"d/{name}"].value) for name in names]
        assert metrics[f"mean_abs_d/{bias_type}"].value == pytest.approx(np.mean(sizes))
        assert metrics[f"mean_abs_d/{bias_type}"].n == len(names)
    every = [abs(metrics[f"d/{n}"].value) for names in SOCIAL_TESTS.values() for n in names]
    total = metrics["mean_abs_d"]
    assert total.value == pytest.approx(np.mean(every))
    assert total.n == 17
    assert total.direction == "lower_is_better"
    assert total.interval is not None
    assert total.interval[0] < total.value < total.interval[1]


def test_the_groups_of_bias_bench_and_a_type_for_every_test() -> None:
    assert SOCIAL_TESTS == {
        "gender": (
            "sent-weat6", "sent-weat6b", "sent-weat7", "sent-weat7b", "sent-weat8", "sent-weat8b",
        ),
        "race-color": (
            "sent-weat3", "sent-weat3b", "sent-weat4", "sent-weat5", "sent-weat5b",
            "sent-angry_black_woman_stereotype", "sent-angry_black_woman_stereotype_b",
        ),
        "religion": ("sent-religion1", "sent-religion1b", "sent-religion2", "sent-religion2b"),
    }  # fmt: skip
    assert list(BIAS_TYPES) == [*WORD_TESTS, *SENTENCE_TESTS]
    assert len(BIAS_TYPES) == 50
    assert [t for t, kind in BIAS_TYPES.items() if kind == "none"] == [
        "weat1", "weat2", "sent-weat1", "sent-weat2",
    ]  # fmt: skip
    assert BIAS_TYPES["weat9"] == BIAS_TYPES["sent-weat9"] == "disability"
    assert BIAS_TYPES["weat10"] == "age"
    assert BIAS_TYPES["heilman_double_bind_likable_1+3-"] == "gender"
    assert BIAS_TYPES["angry_black_woman_stereotype_b"] == "race-color"


def test_parametric_p() -> None:
    frame = made_frame(1, parametric=True)
    first, second = sides(frame, "weat1")
    expected = parametric_p(np.concatenate([first, second]), len(first))
    found = seat_metrics(frame)["d/weat1"].p_value
    assert found == pytest.approx(expected)
    plain = seat_metrics(made_frame(1))["d/weat1"].p_value
    assert plain != found
    assert plain == pytest.approx(found, abs=0.03)


def test_a_mean_without_tests_is_nan() -> None:
    frame = made_frame(0)
    metrics = seat_metrics(frame[frame["test"] == "sent-weat6"])
    assert math.isnan(metrics["mean_abs_d/religion"].value)
    assert metrics["mean_abs_d/religion"].n == 0
    assert metrics["mean_abs_d"].n == 1
    assert metrics["mean_abs_d"].value == abs(metrics["d/sent-weat6"].value)


def test_comparison_by_hand() -> None:
    before, after = made_frame(0, shift=1.5), made_frame(0, shift=0.0)
    found = compare_seat(after, before)
    a, b = seat_metrics(after), seat_metrics(before)
    for name in ("mean_abs_d", "mean_abs_d/gender", "mean_abs_d/religion"):
        assert found[name].value == pytest.approx(a[name].value - b[name].value)
    for test in ("sent-weat6", "weat1"):
        expected = abs(a[f"d/{test}"].value) - abs(b[f"d/{test}"].value)
        assert found[f"abs_d/{test}"].value == pytest.approx(expected)
    total = found["mean_abs_d"]
    assert total.value < 0
    assert total.p_value is not None
    assert total.p_value < 0.01
    assert total.interval is not None
    assert total.interval[0] < total.value < total.interval[1] < 0
    p_values = [m.p_value for name, m in found.items() if name.startswith("abs_d/")]
    adjusted = [m.p_adjusted for name, m in found.items() if name.startswith("abs_d/")]
    assert adjusted == pytest.approx(holm([p for p in p_values if p is not None]))
    assert len(p_values) == 50


def test_a_model_does_not_differ_from_itself() -> None:
    for metric in compare_seat(made_frame(0), made_frame(0)).values():
        assert metric.value == 0
        assert metric.p_value == 1
        assert metric.interval == (0, 0)


def test_the_comparison_is_paired() -> None:
    before = made_frame(0, shift=1.0)
    after = before.assign(association=before["association"] * 3 + 1)  # d knows neither
    for metric in compare_seat(after, before).values():
        assert metric.value == pytest.approx(0, abs=1e-9)
        assert metric.interval == pytest.approx((0, 0), abs=1e-9)


def test_both_sides_are_resampled_apart() -> None:
    frame = made_frame(0)
    part = frame[frame["test"] == "sent-weat6"].copy()
    half = len(part) // 2
    side = part["association"].to_numpy()[:half]
    part["association"] = np.concatenate([side, side])  # alike draws would never part them
    random = np.random.default_rng(0)
    slow = [effect_size(random.choice(side, half), random.choice(side, half)) for _ in range(5000)]
    found = seat_metrics(part)["d/sent-weat6"].standard_error
    assert found == pytest.approx(np.std(slow), rel=0.05)


def test_other_sentences_are_not_compared() -> None:
    frame = made_frame(0)
    with pytest.raises(DataError, match="expected scores of the same examples"):
        compare_seat(frame.iloc[1:], frame)


def test_tests_on_the_same_sentences_are_resampled_alike() -> None:
    frame = made_frame(0)
    one = frame[frame["test"] == "sent-weat6"]
    shuffled = one.iloc[::-1].assign(test="sent-weat7")
    metrics = seat_metrics(pd.concat([one, shuffled]))
    assert metrics["d/sent-weat6"].interval == metrics["d/sent-weat7"].interval
    assert metrics["mean_abs_d"].standard_error == pytest.approx(
        metrics["mean_abs_d/gender"].standard_error
    )


@pytest.mark.parametrize("parametric", [False, True])
def test_recomputed_from_parquet(
    tiny: Loader, corpora: Path, tmp_path: Path, parametric: bool
) -> None:
    inputs = Inputs(seed=5, options={"seat": {"parametric": parametric}})
    frame = BENCHMARK.score(subject(tiny("llama")), inputs)
    assert frame["seed"].unique().tolist() == [5]
    frame.to_parquet(tmp_path / "seat.parquet")
    again = pd.read_parquet(tmp_path / "seat.parquet")
    assert BENCHMARK.aggregate(again) == BENCHMARK.aggregate(frame)
    assert BENCHMARK.compare(again, frame)["mean_abs_d"].value == 0


def test_a_limit_is_one_on_every_set(tiny: Loader, corpora: Path) -> None:
    frame = BENCHMARK.score(subject(tiny("llama")), Inputs(limit=1))
    assert len(frame) == 50 * 2
    metric = BENCHMARK.aggregate(frame)["d/weat1"]
    assert abs(metric.value) == pytest.approx(math.sqrt(2))


def test_options_change_the_embedding(tiny: Loader, corpora: Path) -> None:
    loaded = tiny("llama")
    options: list[dict[str, Any]] = [{}, {"embedding": "last"}, {"layer": 1}, {"layer": 0}]
    found = [
        tuple(BENCHMARK.score(subject(loaded), Inputs(options={"seat": o}))["association"])
        for o in options
    ]
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"embedding": "max"}, "embedding is 'max'; expected mean or last"),
        ({"layer": 7}, "layer is 7; expected -1, or 0 to 2 for this model"),
        ({"layer": -2}, "layer is -2; expected -1 for the last, or 0 and up"),
        ({"layer": True}, "layer is True"),
        ({"parametric": "yes"}, "parametric is 'yes'; expected true or false"),
        ({"layers": 1}, r"seat has no option 'layers' \(did you mean 'layer'\?\)"),
    ],
)
def test_options_out_of_range(
    tiny: Loader, corpora: Path, option: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        BENCHMARK.score(subject(tiny("llama")), Inputs(options={"seat": option}))


def test_texts_without_tokens_or_beyond_the_context_are_refused(tiny: Loader) -> None:
    loaded = tiny("llama")
    with pytest.raises(DataError, match="SEAT's '' has 0 tokens; expected 1 to 64, the context"):
        embed(subject(loaded), [""])
    with pytest.raises(DataError, match=r"SEAT's 'Rain falls\.' has . tokens; expected 1 to 1"):
        embed(subject(loaded, max_length=1), ["Rain falls."])


def test_a_broken_model_is_named(tiny: Loader) -> None:
    model, tokenizer = tiny("llama")
    model.get_decoder().norm.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="4 associations of sent-weat6 are not finite"):
        score_tests(subject((model, tokenizer)), TESTS)


def test_it_is_registered(corpora: Path) -> None:
    assert BENCHMARKS["seat"] is BENCHMARK
    assert BENCHMARK.core
    assert len(BENCHMARK.files({})) == 50
