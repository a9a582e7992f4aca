"""Settings of a run, validated once at the edge; below it functions take plain arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from biasdiff.errors import ConfigError, nearest

SHIPPED = "shipped"
"""Stands for the data that comes with the package, wherever a data file can be named."""

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """Settings that refuse unknown keys and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The base model: a folder, a hub id, a .gguf file or an alias."""

    name: str = "smollm2-135m"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    max_tokens: Count = Field(
        384, description="tokens in a batch that is not trained on; on a GPU try 8192"
    )


class DataConfig(Section):
    """Files, or ``shipped`` for the package's own data in the sizes given here."""

    train: str = SHIPPED
    probe: str = SHIPPED
    pairs: str = Field(SHIPPED, description="evaluation pairs, in the probe's columns")
    texts: str = Field(SHIPPED, description="held-out texts for perplexity")
    text_column: str = "text"
    strict: bool = Field(False, description="refuse texts beyond the context instead of cutting")
    size: Count = Field(400, description="shipped mix: train examples")
    biased_share: Fraction = Field(0.3, description="shipped mix: share of stereotype sentences")
    probe_pairs: Count = Field(150, description="shipped mix: pairs of the reference draw")
    evaluation_pairs: Count = 300
    one_sided: bool = Field(
        False, description="shipped mix: only stereotypes told of one group of a contrast"
    )
    held_out_texts: Count = 200


class LoraConfig(Section):
    """Shape and place of the adapter."""

    rank: Count = 16
    alpha: Count = 32
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = Field((), description="empty: q_proj and v_proj where they exist")


class TrainingConfig(Section):
    """How an adapter is trained."""

    epochs: Count = 4
    batch_size: Count = 16
    accumulation: Count = 1
    learning_rate: float = Field(2e-4, gt=0)
    schedule: str = "linear"
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0, description="0 for no clipping")
    loss_average: Literal["token", "example"] = "token"


class WarmupConfig(TrainingConfig):
    """Training settings of warm-up, and the share of the train set it sees."""

    fraction: Fraction = Field(1.0, description="stratified share; the paper's settings: 1, 0.05")


class AttributionConfig(Section):
    """Which estimator selects, which are computed beside it, and how."""

    estimator: str = "contrast"
    also: tuple[str, ...] = Field((), description="estimators and baselines that are reported only")
    train_side: str | None = Field(
        None, description="sgd, less, adam or adam_v; null: the estimator's own"
    )
    normalize: Literal["none", "train", "both"] | None = Field(
        None, description="sides brought to unit length; null: the estimator's own"
    )
    aggregate: Literal["mean", "max"] = Field("mean", description="over probes, or bias types")
    checkpoint: Count | None = Field(None, description="warm-up epoch to score at; null: the last")
    checkpoints: Literal["last", "all"] = Field(
        "last", description="all: every epoch, weighted by its mean learning rate"
    )
    group: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="examples that share the score of their mean gradient"
    )
    loss: Literal["mean", "sum"] = Field("mean", description="over the tokens of an example")
    parameters: str = Field("lora", description="lora, all, or a regular expression")
    explain: int = Field(0, ge=0, description="selected examples to take apart by tokens")
    options: dict[str, dict[str, Any]] = Field(
        {}, description="settings by estimator, e.g. {rep_sim: {layer: 5}}"
    )


class FeaturesConfig(Section):
    """How gradient features are stored."""

    train_side: str = Field("sgd", description="sgd, less, adam or adam_v")
    projection: Literal["none", "sjlt", "rademacher", "gaussian"] = "sjlt"
    dimensions: Count = 8192
    nonzeros: Count = Field(1, description="of sjlt, in each coordinate's column")
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"


class SelectionConfig(Section):
    """How many examples are taken as biased."""

    fraction: Fraction | None = 0.35
    top_k: Count | None = None
    method: Literal["top", "random"] = "top"


class NpoConfig(TrainingConfig):
    """Training settings of unlearning, and the weights of its two losses."""

    epochs: Count = 2
    learning_rate: float = Field(2e-4, gt=0)
    beta: float = Field(0.1, gt=0)
    retain_weight: float = Field(1.0, ge=0)


class MitigationConfig(Section):
    """Ways of removing the selected examples' effect."""

    methods: tuple[str, ...] = ("retrain", "npo")
    npo: NpoConfig = NpoConfig()


class EvaluateConfig(Section):
    """Which benchmarks are run, and their own settings."""

    benchmarks: tuple[str, ...] = Field(
        ("stereotype_preference", "perplexity"), description="names, core or all"
    )
    limit: Count | None = Field(None, description="examples of each benchmark at most")
    options: dict[str, dict[str, Any]] = Field(
        {}, description="settings by benchmark, e.g. {seat: {layer: 5}}"
    )


class Config(Section):
    """Everything a run depends on."""

    name: Name = "run"
    runs: str = Field("runs", description="folder of run directories")
    seed: int = Field(0, ge=0)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    warmup: WarmupConfig = WarmupConfig()
    attribution: AttributionConfig = AttributionConfig()
    features: FeaturesConfig = FeaturesConfig()
    selection: SelectionConfig = SelectionConfig()
    mitigation: MitigationConfig = MitigationConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


class RecipePart(Section):
    """A share of a mixture: the biased or the other rows of a source."""

    source: str
    is_bias: Literal[0, 1]
    share: float = Field(gt=0, le=1)


class RecipeConfig(Section):
    """A mixture of the user's own."""

    name: Name = "custom"
    what: str = "a mixture of the user's own"
    size: Count = 3000
    seed: int = Field(0, ge=0)
    parts: Annotated[tuple[RecipePart, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _shares_add_up(self) -> RecipeConfig:
        total = sum(part.share for part in self.parts)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares that add up to 1, not {total:g}")
        return self


def load_recipe(path: str | Path) -> RecipeConfig:
    """Read the recipe of a mixture from YAML.

    Raises:
        ConfigError: As `load_config`, and if the shares do not add up to 1.
    """
    try:
        return RecipeConfig.model_validate(_read_yaml(Path(path)))
    except ValidationError as error:
        raise _readable(error.errors()[0], RecipeConfig) from error


def load_config(path: str | Path | None = None, changes: Iterable[str] = ()) -> Config:
    """Read a YAML config and apply changes of the form ``a.b=value``.

    Args:
        path: YAML file; None for the defaults.
        changes: Applied in order; values are read as YAML.

    Raises:
        ConfigError: If the file is missing or not YAML, a key is unknown (the nearest known one is
            named), or a value is of the wrong kind or out of range.
    """
    tree = {} if path is None else _read_yaml(Path(path))
    for change in changes:
        _apply(tree, change)
    return config_from(tree)


def config_from(tree: Mapping[str, Any]) -> Config:
    """Validate a nested dict of settings.

    Raises:
        ConfigError: As `load_config`.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise _readable(error.errors()[0]) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} cannot be read ({' '.join(str(error).split())})",
            expected="a YAML file",
            remedy="check the path and the file",
        ) from error
    if not isinstance(tree or {}, dict):
        raise ConfigError(
            f"{path} holds a {type(tree).__name__}",
            expected="sections such as 'model:' and 'data:'",
            remedy="see configs/demo.yaml",
        )
    return tree or {}


def _apply(tree: dict[str, Any], change: str) -> None:
    key, sign, value = change.partition("=")
    if not sign or not key.strip():
        raise ConfigError(
            f"--set {change}", expected="section.key=value", remedy="write it with an equals sign"
        )
    *sections, last = key.strip().split(".")
    for name in sections:
        inner = tree.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"--set {change}: {name!r} is no section",
                expected="section.key=value",
                remedy="name a key of a section",
            )
        tree = inner
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {change}", expected="a YAML value after =", remedy="quote the value"
        ) from error


def _readable(problem: Any, root: type[BaseModel] = Config) -> ConfigError:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"], root)
        return ConfigError(
            f"unknown config key {key!r}{nearest(str(problem['loc'][-1]), known)}",
            expected=f"one of {', '.join(known)}",
            remedy="mend the key",
        )
    if problem["type"] == "missing":
        return ConfigError(f"config key {key!r} is missing", expected="it", remedy="add it")
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return ConfigError(
        f"config key {key!r} is {problem['input']!r}" if key else "the recipe's parts are wrong",
        expected=expected,
        remedy="change the value",
    )


def _keys_beside(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    section = root
    for name in location[:-1]:
        inner = section.model_fields[str(name)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        section = inner
    return list(section.model_fields)
