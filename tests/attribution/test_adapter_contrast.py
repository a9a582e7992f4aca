from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from biasdiff.attribution import adapter_contrast, adapter_training
from biasdiff.attribution.adapter_contrast import ADAPTER_CONTRAST, adapter_contrast_settings
from biasdiff.attribution.adapter_training import held_out_pairs, paired_accuracy
from biasdiff.attribution.material import EncodedProbes, Material
from biasdiff.attribution.paired_adapters import SIDES, paired_adapters
from biasdiff.attribution.split_forward import SplitForward, Way
from biasdiff.data.encoding import Encoding, encode_example, encode_text
from biasdiff.data.probe import ProbePair
from biasdiff.data.records import TrainExample
from biasdiff.errors import BiasdiffError, ConfigError, DataError, ModelError, NonFiniteError
from biasdiff.functional.losses import IGNORED
from biasdiff.models.lora import lora_parameters
from tiny_models import ARCHITECTURES, SENTENCES, adapt, tiny_tokenizer

PREDICATES = (
    "could not use the computer",
    "was late for the secretary",
    "shouted at the engineer",
    "fixed the stone wall",
    "came to the valley before winter",
    "sleeps behind the house",
    "said it was one hundred degrees",
    "is at sea level",
    "fell on the warm bridge",
    "would be the boss of France",
)


def pair(number: int, predicate: str, more: str = "old", less: str = "young") -> ProbePair:
    return ProbePair(
        f"The {more} man {predicate}.",
        f"The {less} man {predicate}.",
        "stereo",
        "age",
        number,
        {"stereotype_id": f"s{number}"},
    )


PAIRS = tuple(pair(number, predicate) for number, predicate in enumerate(PREDICATES[:6]))


def example(number: int, text: str) -> TrainExample:
    return TrainExample(id=f"t{number}", row=number, text=text)


TRAIN = (
    *(example(number, text) for number, text in enumerate(SENTENCES)),
    TrainExample(id="t10", row=10, prompt="The boss", completion=" shouted"),
)


def material(
    model: Any,
    *,
    pairs: Sequence[ProbePair] = PAIRS,
    examples: Sequence[TrainExample] = TRAIN,
    max_tokens: int = 64,
    seed: int = 0,
    work: Path | None = None,
    **options: Any,
) -> Material:
    tokenizer = tiny_tokenizer()
    probes = EncodedProbes(
        [encode_text(tokenizer, p.sent_more) for p in pairs],
        [encode_text(tokenizer, p.sent_less) for p in pairs if p.sent_less],
        [p.bias_type for p in pairs],
        [f"probe row {p.row}" for p in pairs],
    )
    return Material(
        model=model,
        tokenizer=tokenizer,
        max_length=64,
        max_tokens=max_tokens,
        examples=examples,
        encodings=[encode_example(tokenizer, e) for e in examples],
        pairs=pairs,
        probes=probes,
        seed=seed,
        options=options,
        work=work,
    )


def scores_of(given: Material) -> np.ndarray:
    scores = ADAPTER_CONTRAST.score(given)
    assert scores.by_type.shape == (len(given.examples), 0)
    assert scores.overall.dtype == np.float64
    return scores.overall


def slow_target_log_probs(model: Any, encoding: Encoding) -> Tensor:
    log_probs = model(input_ids=torch.tensor([encoding.input_ids])).logits[0].log_softmax(-1)
    places = [t for t, label in enumerate(encoding.labels[1:]) if label != IGNORED]
    return torch.stack([log_probs[t, encoding.labels[t + 1]] for t in places])


def slow_scores(
    sides: dict[str, Any],
    given: Material,
    *,
    epochs: int,
    batch_size: int,
    rate: float,
    trained: Callable[[str], bool],
) -> np.ndarray:
    """Train PEFT adapters one text at a time and score the train set one text at a time."""
    means = {}
    for side, texts in zip(SIDES, (given.probes.more, given.probes.less), strict=True):
        model = sides[side].eval()
        parameters = [p for name, p in lora_parameters(model) if trained(name)]
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        order, shuffle = list(range(len(texts))), random.Random(given.seed)
        for _ in range(epochs):
            shuffle.shuffle(order)
            for start in range(0, len(order), batch_size):
                batch = [texts[i] for i in order[start : start + batch_size]]
                optimizer.zero_grad()
                total = sum(text.targets for text in batch)
                for text in batch:
                    (-slow_target_log_probs(model, text).sum() / total).backward()
                optimizer.step()
        with torch.no_grad():
            means[side] = np.array(
                [float(slow_target_log_probs(model, e).mean()) for e in given.encodings]
            )
    return means["stereotype"] - means["twin"]


def copy_start(into: Any, from_model: Any, given: Material) -> None:
    """Give PEFT's adapter the weights that our adapters start from."""
    start = paired_adapters(from_model, rank=3, seed=given.seed).state_dict()
    for number, (_, parameter) in enumerate(lora_parameters(into)):
        kind = "up" if number % 2 else "down"
        parameter.data.copy_(start[f"sides.twin.{number // 2}.{kind}.weight"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", ["all", "upper"])
@pytest.mark.parametrize("start", ["base", "checkpoint"])
def test_equals_peft_adapters_trained_and_scored_one_text_at_a_time(
    tiny: Callable[..., tuple[Any, Any]], architecture: str, layers: str, start: str
) -> None:
    def fresh() -> Any:
        return adapt(tiny(architecture, torch.float64)[0], rank=3, alpha=6)

    model = fresh()
    rank = {"rank": 3} if start == "base" else {}
    options = {"layers": layers, "start": start, "epochs": 2, "batch_size": 3, **rank}
    given = material(model, pairs=PAIRS[:4], examples=TRAIN[::2], learning_rate=1e-2, **options)
    sides = {side: fresh() for side in SIDES}
    if start == "base":  # the upper half of a fresh start has nothing below it: B is zero there
        for side in SIDES:
            copy_start(sides[side], model, given)
            if layers == "upper":
                upper = paired_adapters(model, layers="upper", rank=3).state_dict()
                _copy_upper(sides[side], upper)
    slow = slow_scores(
        sides,
        given,
        epochs=2,
        batch_size=3,
        rate=1e-2,
        trained=lambda name: layers == "all" or _layer_of(name) == 1,
    )
    assert np.abs(slow).min() > 1e-4
    np.testing.assert_allclose(scores_of(given), slow, rtol=1e-6, atol=1e-9)


def _layer_of(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())


def _copy_upper(into: Any, start: dict[str, Tensor]) -> None:
    upper = [p for name, p in lora_parameters(into) if _layer_of(name) == 1]
    for number, parameter in enumerate(upper):
        kind = "up" if number % 2 else "down"
        parameter.data.copy_(start[f"sides.twin.{number // 2}.{kind}.weight"])


@pytest.mark.parametrize("layers", ["all", "upper"])
@pytest.mark.parametrize("epochs", [3, "auto"])
def test_held_out_stereotypes_score_above_their_twins(
    adapted: Callable[..., tuple[Any, Any]], layers: str, epochs: Any
) -> None:
    model, _ = adapted("llama")
    held = [pair(i, predicate) for i, predicate in enumerate(PREDICATES[6:], 6)]
    texts = [p.sent_more for p in held] + [p.sent_less for p in held]
    examples = [example(i, text) for i, text in enumerate(texts)]
    given = material(model, examples=examples, layers=layers, epochs=epochs, batch_size=2)
    labels = [1] * len(held) + [0] * len(held)
    assert roc_auc_score(labels, scores_of(given)) == 1


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("layers", ["all", "upper"])
def test_the_train_set_is_scored_the_fast_way(
    adapted: Callable[..., tuple[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    layers: str,
) -> None:
    made: list[SplitForward] = []

    def noted(*arguments: Any, **keywords: Any) -> SplitForward:
        made.append(SplitForward(*arguments, **keywords))
        return made[-1]

    monkeypatch.setattr(adapter_contrast, "SplitForward", noted)
    model, _ = adapted(architecture)
    scores_of(material(model, layers=layers))
    assert [forward.way for forward in made] == [Way(split=layers == "upper", gather=True)]


def test_probes_turned_round_turn_the_scores_round(
    adapted: Callable[..., tuple[Any, Any]],
) -> None:
    model, _ = adapted("llama", torch.float64)
    turned = [replace(p, sent_more=p.sent_less, sent_less=p.sent_more) for p in PAIRS]
    scores = [scores_of(material(model, pairs=pairs)) for pairs in (PAIRS, turned)]
    np.testing.assert_allclose(scores[0], -scores[1], rtol=1e-9, atol=1e-12)


def test_the_seed_decides(adapted: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = adapted("llama")
    torch.manual_seed(5)
    first = scores_of(material(model, seed=3))
    state = torch.random.get_rng_state()
    torch.manual_seed(6)
    assert (scores_of(material(model, seed=3)) == first).all()
    assert (scores_of(material(model, seed=4)) != first).any()
    torch.manual_seed(5)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("layers", ["all", "upper"])
def test_batches_and_their_order_change_nothing(
    adapted: Callable[..., tuple[Any, Any]], layers: str
) -> None:
    model, _ = adapted("gemma3", torch.float64)
    order = random.Random(0).sample(range(len(TRAIN)), len(TRAIN))
    expected = scores_of(material(model, layers=layers))
    for max_tokens in (1, 40, 10_000):
        given = material(
            model, layers=layers, max_tokens=max_tokens, examples=[TRAIN[i] for i in order]
        )
        np.testing.assert_allclose(scores_of(given), expected[order], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt-350m"])
def test_named_targets(adapted: Callable[..., tuple[Any, Any]], architecture: str) -> None:
    names = {"llama": ["o_proj", "down_proj"], "gpt2": ["c_proj"], "opt-350m": ["project_in"]}
    model, _ = adapted(architecture)
    given = material(model, targets=names[architecture])
    assert np.abs(scores_of(given)).min() > 0
    adapters = paired_adapters(model, targets=names[architecture])
    assert len(adapters.sides["twin"]) == {"llama": 4, "gpt2": 4, "opt-350m": 1}[architecture]
    assert adapters.first_layer == 0


def test_the_given_adapter_is_switched_off_for_a_start_at_the_base(
    tiny: Callable[..., tuple[Any, Any]],
) -> None:
    with_adapter, other = (adapt(tiny("llama")[0]) for _ in range(2))
    for _, parameter in lora_parameters(other):
        parameter.data.mul_(3)
    scores = [scores_of(material(model)) for model in (with_adapter, other)]
    assert (scores[0] == scores[1]).all()
    scores = [scores_of(material(model, start="checkpoint")) for model in (with_adapter, other)]
    assert (scores[0] != scores[1]).all()


def snapshot(model: Any) -> dict[str, Any]:
    return {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: p.grad is None for name, p in model.named_parameters()},
        "training": {name: m.training for name, m in model.named_modules()},
        "hooks": [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks],
        "patched": [n for n, m in model.named_modules() if "forward" in vars(m)],
        "adapters": (list(model.peft_config), model.active_adapters, str(model)),
        "disabled": [m.disable_adapters for m in model.modules() if hasattr(m, "disable_adapters")],
        "logits": model.eval()(input_ids=torch.tensor([[0, 5, 9, 7]])).logits.detach(),
    }


def assert_untouched(model: Any, before: dict[str, Any], training: dict[str, bool]) -> None:
    assert {name: m.training for name, m in model.named_modules()} == training
    after = snapshot(model)
    for kind in ("trained", "grad", "hooks", "patched", "adapters", "disabled"):
        assert after[kind] == before[kind], kind
    assert after["weights"].keys() == before["weights"].keys()
    for name, weight in before["weights"].items():
        assert torch.equal(weight, after["weights"][name]), name
    assert torch.equal(before["logits"], after["logits"])


@pytest.mark.parametrize("start", ["base", "checkpoint"])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("failing", [None, "token_mean_loss", "side_contrast"])
def test_the_model_is_left_as_it_was_found(
    adapted: Callable[..., tuple[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
    start: str,
    trained: bool,
    failing: str | None,
) -> None:
    model, _ = adapted("opt", dropout=0.3)
    for _, parameter in lora_parameters(model):
        parameter.requires_grad_(trained)
    before = snapshot(model)
    model.train()
    next(iter(model.get_base_model().model.decoder.layers)).eval()  # an uneven state
    training = {name: m.training for name, m in model.named_modules()}
    given = material(model, start=start, layers="upper")
    if failing is None:
        scores_of(given)
    else:

        def refuse(*_: Any) -> None:
            raise RuntimeError("no room")

        module = adapter_training if failing == "token_mean_loss" else adapter_contrast
        monkeypatch.setattr(module, failing, refuse)
        with pytest.raises(RuntimeError, match="no room"):
            scores_of(given)
    assert_untouched(model, before, training)


def test_dropout_plays_no_part(tiny: Callable[..., tuple[Any, Any]]) -> None:
    plain, dropping = (adapt(tiny("llama")[0], dropout=rate) for rate in (0.0, 0.5))
    dropping.train()
    for start in ("base", "checkpoint"):
        scores = [scores_of(material(model, start=start)) for model in (plain, dropping)]
        assert (scores[0] == scores[1]).all()


def test_half_precision(adapted: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = adapted("llama", torch.bfloat16)
    adapters = paired_adapters(model, start="checkpoint")
    assert {p.dtype for p in adapters.parameters()} == {torch.float32}
    scores = scores_of(material(model, layers="upper", learning_rate=1e-2))
    exact = scores_of(material(adapted("llama")[0], layers="upper", learning_rate=1e-2))
    assert np.corrcoef(scores, exact)[0, 1] > 0.95


def test_auto_takes_the_epoch_that_tells_held_out_pairs_apart(
    adapted: Callable[..., tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = adapted("llama", torch.float64)
    pairs = [pair(i, predicate) for i, predicate in enumerate(PREDICATES)]
    lines: list[str] = []
    accuracies = iter([0.5, 0.75, 0.75, 0.5])
    monkeypatch.setattr(adapter_training, "say", lines.append)
    monkeypatch.setattr(adapter_training, "paired_accuracy", lambda *_: next(accuracies))
    found = scores_of(material(model, pairs=pairs, epochs="auto", batch_size=3))
    assert lines == [
        "  trained for 2 epochs: tells 75% of 2 held-out pairs apart (by epoch: 50%, 75%, 75%, 50%)"
    ]
    held = held_out_pairs([p.stereotype_id for p in pairs], seed=0)
    others = [p for i, p in enumerate(pairs) if i not in held]
    expected = scores_of(material(model, pairs=others, epochs=2, batch_size=3))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_auto_judges_by_the_true_scores_of_held_out_pairs(
    adapted: Callable[..., tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = adapted("llama", torch.float64)
    pairs = [pair(i, predicate) for i, predicate in enumerate(PREDICATES)]
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def note(more: np.ndarray, less: np.ndarray) -> float:
        seen.append((more.copy(), less.copy()))
        return 1.0

    monkeypatch.setattr(adapter_training, "paired_accuracy", note)
    held = [pairs[i] for i in held_out_pairs([p.stereotype_id for p in pairs], seed=0)]
    examples = [example(i, p.sent_more) for i, p in enumerate(held)]
    examples += [example(i, p.sent_less) for i, p in enumerate(held, 10)]
    scores = scores_of(material(model, pairs=pairs, epochs="auto", examples=examples))
    np.testing.assert_allclose(np.concatenate(seen[0]), scores, rtol=1e-9)
    assert len(seen) == 1 + adapter_training.PATIENCE


def test_auto_never_looks_at_the_train_set(
    adapted: Callable[..., tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = adapted("llama")
    lines: list[str] = []
    monkeypatch.setattr(adapter_training, "say", lines.append)
    scores_of(material(model, epochs="auto"))
    scores_of(material(model, epochs="auto", examples=TRAIN[:2]))
    assert lines[0] == lines[1]


def test_held_out_pairs_keep_stereotypes_whole() -> None:
    names = [f"s{i % 12}" for i in range(60)]
    held = held_out_pairs(names, seed=1)
    assert len(held) == 10  # two of twelve stereotypes
    assert {names[i] for i in held}.isdisjoint(
        {name for i, name in enumerate(names) if i not in held}
    )
    assert held == held_out_pairs(names, seed=1)
    assert held != held_out_pairs(names, seed=2)


def test_paired_accuracy_counts_ties_as_half() -> None:
    more, less = np.array([2.0, 1.0, 0.0, 5.0]), np.array([1.0, 1.0, 3.0, 0.0])
    assert paired_accuracy(more, less) == 0.625


def test_pairs_without_a_stereotype_stand_for_themselves() -> None:
    nameless = [replace(p, extra={}) for p in PAIRS[:2]]
    assert adapter_training.stereotype_names([*nameless, PAIRS[2]]) == ["row 0", "row 1", "s2"]


def test_an_interrupted_pass_goes_on(
    adapted: Callable[..., tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, _ = adapted("llama")
    expected = scores_of(material(model, max_tokens=20))
    monkeypatch.setattr(adapter_contrast, "BATCHES_A_CHUNK", 3)
    true_contrast, calls = adapter_contrast.side_contrast, []

    def stops_in_the_second_chunk(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return true_contrast(*arguments)

    monkeypatch.setattr(adapter_contrast, "side_contrast", stops_in_the_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        scores_of(material(model, max_tokens=20, work=tmp_path))
    assert len(list(tmp_path.iterdir())) == 2  # the adapters and the first chunk
    monkeypatch.setattr(adapter_contrast, "train_on_sides", None)  # not to be called again
    np.testing.assert_allclose(
        scores_of(material(model, max_tokens=20, work=tmp_path)), expected, atol=1e-6
    )
    done = len(calls)
    assert (
        scores_of(material(model, max_tokens=20, work=tmp_path))
        == scores_of(material(model, max_tokens=20, work=tmp_path))
    ).all()
    assert len(calls) == done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"epoch": 3},
            "adapter_contrast has no option 'epoch' (did you mean 'epochs'?); expected some of "
            "epochs, learning_rate, rank, batch_size, layers, targets, start; mend "
            "attribution.options.adapter_contrast.",
        ),
        (
            {"epochs": 0},
            "adapter_contrast: epochs is 0; expected a whole number from 1 or auto; mend "
            "attribution.options.adapter_contrast.epochs.",
        ),
        ({"epochs": "all"}, "epochs is 'all'; expected a whole number from 1 or auto"),
        ({"epochs": 2.5}, "epochs is 2.5; expected a whole number from 1 or auto"),
        ({"rank": True}, "rank is True; expected a whole number from 1;"),
        ({"rank": -1}, "rank is -1; expected a whole number from 1;"),
        ({"batch_size": "8"}, "batch_size is '8'; expected a whole number from 1;"),
        ({"learning_rate": 0}, "learning_rate is 0; expected a number above 0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; expected a number above 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; expected a number above 0"),
        ({"learning_rate": True}, "learning_rate is True; expected a number above 0"),
        ({"learning_rate": None}, "learning_rate is None; expected a number above 0"),
        ({"layers": "lower"}, "layers is 'lower'; expected one of all, upper"),
        ({"layers": ["all"]}, "layers is ['all']; expected one of all, upper"),
        ({"start": "scratch"}, "start is 'scratch'; expected one of base, checkpoint"),
        ({"targets": "q_proj"}, "targets is 'q_proj'; expected a list of names of linear maps"),
        ({"targets": [1]}, "targets is [1]; expected a list of names of linear maps"),
        (
            {"start": "checkpoint", "rank": 4},
            "rank is 4; expected nothing where start is 'checkpoint'",
        ),
        (
            {"start": "checkpoint", "targets": ["q_proj"]},
            "targets is ['q_proj']; expected nothing where start is 'checkpoint'",
        ),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ADAPTER_CONTRAST.check(options)
    assert message in str(caught.value)


def test_options_as_yaml_gives_them() -> None:
    settings = adapter_contrast_settings({"learning_rate": "1e-3", "targets": ["k_proj"]})
    assert settings.training.learning_rate == 1e-3
    assert settings.targets == ("k_proj",)
    assert settings.training.epochs == 3
    assert (settings.rank, settings.layers, settings.start) == (8, "all", "base")
    assert ADAPTER_CONTRAST.needs_twins


def refused(kind: type[BiasdiffError], given: Material) -> str:
    with pytest.raises(kind) as caught:
        ADAPTER_CONTRAST.score(given)
    return str(caught.value)


def test_unknown_targets(adapted: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = adapted("llama")
    assert refused(ModelError, material(model, targets=["k_prj"])) == (
        "the target 'k_prj' matches nothing in the model (did you mean 'k_proj'?); expected some "
        "of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj; change targets."
    )


def test_nothing_in_the_upper_half(adapted: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = adapted("opt-350m")
    message = refused(ModelError, material(model, targets=["project_in"], layers="upper"))
    assert message == (
        "none of the maps to adapt is in the upper half of the decoder layers; expected at least "
        "one; set layers to 'all' or change targets."
    )


def test_decoder_layers_that_cannot_be_told(
    adapted: Callable[..., tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = adapted("llama")
    monkeypatch.setattr(type(model.get_base_model()), "get_decoder", lambda self: self.lm_head)
    assert refused(ModelError, material(model, layers="upper")) == (
        "the decoder layers of a llama model cannot be told; expected a list of "
        "config.num_hidden_layers modules in its decoder; set layers to 'all'."
    )
    assert np.isfinite(scores_of(material(model))).all()


def test_pairs_without_twins(adapted: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = adapted("llama")
    lonely = [*PAIRS[:3], replace(PAIRS[3], sent_less="")]
    message = refused(DataError, material(model, pairs=lonely))
    assert "1 of 4 probe rows have no 'sent_less', the first row 3" in message
    assert "a twin for every sentence, which the estimator 'adapter_contrast' compares" in message


def test_too_few_pairs(adapted: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = adapted("llama")
    assert refused(DataError, material(model, pairs=PAIRS[:1])) == (
        "the probe set has 1 pairs to train adapters on; expected at least 2; add pairs or choose "
        "another estimator."
    )
    assert refused(DataError, material(model, pairs=PAIRS[:4], epochs="auto")) == (
        "the probe set has 4 stereotypes, too few to hold some out; expected at least 5; give "
        "epochs as a number or add pairs."
    )


def test_a_loss_that_is_not_finite(adapted: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = adapted("llama")
    message = refused(NonFiniteError, material(model, learning_rate=1e30, batch_size=2))
    assert "the loss of the stereotype adapter became nan in epoch 1, in the batch of" in message
    assert "probe row" in message
    assert "expected a finite loss; lower learning_rate" in message


def test_a_score_that_is_not_finite(
    adapted: Callable[..., tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = adapted("llama")
    monkeypatch.setattr(
        adapter_contrast, "side_contrast", lambda _, batch, device: np.full(len(batch), np.nan)
    )
    message = refused(NonFiniteError, material(model, max_tokens=10_000))
    assert message.startswith("the log-likelihood is not finite for t")
    assert "and 3 more; expected finite log-likelihoods; lower learning_rate" in message
