"""Every estimator through ``attribute``, its options, and stored features, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from biasdiff.attribution.registry import ESTIMATORS
from biasdiff.cli.app import app
from biasdiff.config import Config
from biasdiff.errors import ConfigError, DataError, ModelError
from biasdiff.models.loading import load_tokenizer, resolve_model
from biasdiff.pipeline.attribute import attribute
from biasdiff.pipeline.features import build_features, check_features
from biasdiff.pipeline.warmup import warmup
from pipeline.small_run import CLAIMS, small_config, write_pairs, write_train

Folder = Callable[..., Path]
ALL = tuple(name for name in ESTIMATORS if name != "classifier")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Folder) -> dict[str, Any]:
    """Train set, probe pairs, a warm-up of two epochs, and the config they were made with."""
    folder = tmp_path_factory.mktemp("estimators")
    model = str(tiny_folder("llama"))
    config = small_config(folder / "run", Path(model))
    train = str(write_train(folder / "train.jsonl"))
    probe = str(write_pairs(folder / "probe.csv", CLAIMS))
    adapter = warmup(model, train, folder / "warmup", config=config)
    return {
        "model": model,
        "train": train,
        "probe": probe,
        "adapter": adapter,
        "config": config,
    }


def with_attribution(config: Config, **changes: Any) -> Config:
    section = config.attribution.model_copy(update={"also": (), **changes})
    return config.model_copy(update={"attribution": section})


def run(made: dict[str, Any], out: Path, *, features: Path | None = None, **changes: Any) -> Path:
    return attribute(
        made["model"],
        made["train"],
        made["probe"],
        out,
        adapter=made["adapter"],
        features=features,
        config=with_attribution(made["config"], **changes),
    )


def scores(folder: Path, name: str = "scores.parquet") -> np.ndarray:
    return pd.read_parquet(folder / name)["score"].to_numpy(np.float64)


def test_every_estimator_gives_every_example_a_score(made: dict[str, Any], tmp_path: Path) -> None:
    options = {"adapter_contrast": {"epochs": 1}}
    out = run(made, tmp_path / "all", estimator=ALL[0], also=ALL[1:], options=options)
    found = {ALL[0]: scores(out)}
    found |= {name: scores(out, f"scores-{name}.parquet") for name in ALL[1:]}
    for name, values in found.items():
        assert len(values) == 10, name
        assert np.isfinite(values).all(), name
        assert len(set(values.tolist())) > 1, f"{name} says the same of every example"
    gradient = pd.read_parquet(out / "scores-sgd_cos.parquet")
    assert {"score_age", "score_gender", "selected"} <= set(gradient.columns)
    assert json.loads((out / "attribute.json").read_text())["estimator"] == ALL[0]


def test_all_checkpoints_are_weighted_by_their_rates(made: dict[str, Any], tmp_path: Path) -> None:
    first = scores(run(made, tmp_path / "1", estimator="less", checkpoint=1))
    second = scores(run(made, tmp_path / "2", estimator="less", checkpoint=2))
    both = scores(run(made, tmp_path / "all", estimator="less", checkpoints="all"))
    places = [made["adapter"] / "checkpoints" / f"epoch-{n}" / "checkpoint.json" for n in (1, 2)]
    rates = [json.loads(place.read_text())["mean_learning_rate"] for place in places]
    assert rates[0] != rates[1]
    expected = (rates[0] * first + rates[1] * second) / sum(rates)
    np.testing.assert_allclose(both, expected, atol=1e-6)
    assert not np.allclose(first, second, atol=1e-3)


def test_max_takes_the_highest_type(made: dict[str, Any], tmp_path: Path) -> None:
    out = run(made, tmp_path / "max", estimator="contrast", aggregate="max")
    table = pd.read_parquet(out / "scores.parquet")
    highest = table[["score_age", "score_gender"]].max(axis=1)
    np.testing.assert_allclose(table["score"], highest)


def test_groups_share_scores(made: dict[str, Any], tmp_path: Path) -> None:
    found = scores(run(made, tmp_path / "group", estimator="less", group=4))
    counts = sorted(pd.Series(found).value_counts().tolist())
    assert counts == [2, 4, 4]


def test_the_models_own_parameters(made: dict[str, Any], tmp_path: Path) -> None:
    lora = scores(run(made, tmp_path / "lora", estimator="sgd_cos"))
    whole = scores(run(made, tmp_path / "all", estimator="sgd_cos", parameters="all"))
    linear = scores(run(made, tmp_path / "re", estimator="sgd_cos", parameters=r"mlp.*weight"))
    for other in (whole, linear):
        assert np.isfinite(other).all()
        assert not np.allclose(lora, other, atol=1e-3)
    with pytest.raises(ConfigError, match="and less needs Adam moments or curvature"):
        run(made, tmp_path / "no", estimator="less", parameters="all")


def test_explanations_are_of_the_highest_examples(made: dict[str, Any], tmp_path: Path) -> None:
    out = run(made, tmp_path / "explain", estimator="less", explain=3)
    record = json.loads((out / "explanations.json").read_text())
    values = scores(out)
    assert [one["row"] for one in record["examples"]] == np.argsort(-values)[:3].tolist()
    tokenizer = load_tokenizer(resolve_model(made["model"]))
    texts = pd.read_json(made["train"], lines=True)["text"].tolist()
    for one in record["examples"]:
        total = sum(one["contributions"]) + one["momentum"]
        assert total == pytest.approx(values[one["row"]], abs=1e-5)
        ids = tokenizer(texts[one["row"]], add_special_tokens=False)["input_ids"]
        assert one["tokens"] == [tokenizer.decode([token]) for token in ids]
    with pytest.raises(ConfigError, match="bm25 has no gradients to share out"):
        run(made, tmp_path / "no", estimator="bm25", also=("less",), explain=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "les"}, r"unknown estimator 'les' \(did you mean 'less'\?\)"),
        ({"also": ("contrast", "tfidf")}, "unknown estimator 'tfidf'"),
        ({"train_side": "adamv"}, "unknown train side 'adamv'"),
        ({"checkpoint": 1, "checkpoints": "all"}, "checkpoint is 1 and checkpoints is 'all'"),
        ({"options": {"rep_simm": {}}}, "unknown estimator 'rep_simm'"),
        ({"estimator": "less", "options": {"less": {"layer": 1}}}, "has no option 'layer'"),
        ({"estimator": "ekfac", "options": {"ekfac": {"damping": -1}}}, "damping is -1"),
        ({"estimator": "classifier"}, "classifier"),
    ],
)
def test_wrong_settings_are_found_before_any_work(
    made: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(made, tmp_path / "no", **changes)
    assert not (tmp_path / "no.part").exists()


def features(made: dict[str, Any], out: Path, **changes: Any) -> Config:
    section = made["config"].features.model_copy(update=changes)
    config: Config = made["config"].model_copy(update={"features": section})
    build_features(made["model"], made["train"], made["adapter"], out, config=config)
    return config


@pytest.mark.parametrize("projection", ["none", "sjlt", "rademacher", "gaussian"])
@pytest.mark.parametrize("side", ["sgd", "less"])
def test_stored_features_give_the_exact_scores_up_to_projection(
    made: dict[str, Any], tmp_path: Path, projection: str, side: str
) -> None:
    name = {"sgd": "contrast", "less": "less"}[side]
    config = features(
        made, tmp_path / "store", projection=projection, dtype="float32", train_side=side
    )
    stored = made | {"config": config}
    exact = scores(run(made, tmp_path / "exact", estimator=name))
    out = run(stored, tmp_path / "stored", features=tmp_path / "store", estimator=name)
    if projection == "none":
        np.testing.assert_allclose(scores(out), exact, atol=1e-6)
    else:
        assert np.corrcoef(scores(out), exact)[0, 1] > 0.97
    found = check_features(
        tmp_path / "store",
        made["model"],
        made["train"],
        made["probe"],
        made["adapter"],
        sample=8,
        config=config,
    )
    assert found[name]["rows"] == 8
    assert found[name]["pearson"] > 0.95
    if projection == "none":
        assert found[name]["spearman"] == pytest.approx(1)
        assert found[name]["overlap"] == 1


def test_features_are_refused_for_anything_else(made: dict[str, Any], tmp_path: Path) -> None:
    config = features(made, tmp_path / "store")
    stored = made | {"config": config}
    with pytest.raises(ConfigError, match="less has the train side 'less', the features 'sgd'"):
        run(stored, tmp_path / "a", features=tmp_path / "store", estimator="less")
    with pytest.raises(ConfigError, match="--features is given, and group is 2"):
        run(stored, tmp_path / "b", features=tmp_path / "store", group=2)
    with pytest.raises(DataError, match=r"adapter .* expected"):
        run(stored, tmp_path / "c", features=tmp_path / "store", checkpoint=1)
    other = config.model_copy(update={"seed": 7})
    with pytest.raises(DataError, match="seed"):
        run(made | {"config": other}, tmp_path / "d", features=tmp_path / "store")
    wrong = config.features.model_copy(update={"train_side": "adamw"})
    with pytest.raises(ConfigError, match="unknown train side 'adamw'"):
        build_features(
            made["model"],
            made["train"],
            made["adapter"],
            tmp_path / "e",
            config=config.model_copy(update={"features": wrong}),
        )


def test_a_damaged_shard_is_named_and_made_again(made: dict[str, Any], tmp_path: Path) -> None:
    config = features(made, tmp_path / "store")
    stored = made | {"config": config}
    before = scores(run(stored, tmp_path / "a", features=tmp_path / "store"))
    shard = next((tmp_path / "store").glob("*0*"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(DataError, match=shard.name):
        run(stored, tmp_path / "b", features=tmp_path / "store")
    build_features(made["model"], made["train"], made["adapter"], tmp_path / "store", config=config)
    after = scores(run(stored, tmp_path / "c", features=tmp_path / "store"))
    np.testing.assert_array_equal(after, before)


def test_features_from_the_command_line(made: dict[str, Any], tmp_path: Path) -> None:
    same = ["--model", made["model"], "--train", made["train"], "--adapter", str(made["adapter"])]
    store = str(tmp_path / "store")
    built = CliRunner().invoke(app, ["features", "build", *same, "--out", store, "--quiet"])
    assert built.exit_code == 0, built.output
    probe = ["--probe", made["probe"], "--features", store, "--quiet"]
    checked = CliRunner().invoke(app, ["features", "check", *same, *probe, "--sample", "6"])
    assert checked.exit_code == 0, checked.output
    assert "contrast" in checked.output
    assert "Spearman" in checked.output
    out = ["--out", str(tmp_path / "scores"), "--also", "bm25,sgd_dot"]
    scored = CliRunner().invoke(app, ["attribute", *same, *probe, *out])
    assert scored.exit_code == 0, scored.output
    assert (tmp_path / "scores" / "scores-sgd_dot.parquet").is_file()


def test_adapters_without_moments_say_what_is_missing(made: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(made["adapter"] / "checkpoints" / "epoch-2", bare)
    (bare / "adam.safetensors").unlink()
    with pytest.raises(ModelError, match="no Adam state, which the train side 'adam_v' needs"):
        run(made | {"adapter": bare}, tmp_path / "no", estimator="adam_v")
    assert len(scores(run(made | {"adapter": bare}, tmp_path / "yes", estimator="contrast"))) == 10
