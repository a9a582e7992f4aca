"""``biasdiff features``: gradient features on disk, for many probe sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from biasdiff.attribution.estimator import GradientEstimator
from biasdiff.attribution.features.building import build_store, store_sums
from biasdiff.attribution.features.store import FeatureStore, open_store
from biasdiff.attribution.gradient_pass import Chosen, comparisons_of, gradient_sums
from biasdiff.attribution.material import Material
from biasdiff.attribution.registry import ESTIMATORS
from biasdiff.attribution.scoring import Pass
from biasdiff.attribution.selection import selected_count
from biasdiff.attribution.train_sides import NEEDS_ADAM, TRAIN_SIDES
from biasdiff.config import Config
from biasdiff.data.records import load_train_set
from biasdiff.errors import ConfigError, DataError, nearest
from biasdiff.functional.projection import Projection, make_projection
from biasdiff.models.loading import resolve_model
from biasdiff.models.lora import load_adapter, lora_parameters
from biasdiff.pipeline.artifacts import file_fingerprint, folder_fingerprint
from biasdiff.pipeline.base_model import find_adapter, load_base, model_settings
from biasdiff.pipeline.probe_set import encode_probes, load_pairs
from biasdiff.progress import say
from biasdiff.training.checkpoints import load_adam_state

Fidelity = dict[str, dict[str, float]]


def build_features(
    model: str,
    train: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    config: Config | None = None,
) -> Path:
    """Store the train features of a model at a checkpoint.

    Args:
        model: Folder, hub id, .gguf file or ``smollm2-135m``.
        train: Train data file or dataset id.
        adapter: Adapter or warm-up folder.
        out: Folder of the store; an unfinished or damaged one there is gone on with.
        config: Sections ``model``, ``data`` and ``features``, ``attribution.checkpoint`` and
            ``attribution.loss`` are used.

    Returns:
        The folder ``out``.

    Raises:
        ConfigError: If the train side is unknown.
        DataError: If the folder holds features made from something else; the difference is named.
        ModelError: If the train side needs Adam moments that the adapter does not carry.
    """
    config = config or Config()
    side = config.features.train_side
    if side not in TRAIN_SIDES:
        raise ConfigError(
            f"unknown train side {side!r}{nearest(side, TRAIN_SIDES)}",
            expected=f"one of {', '.join(TRAIN_SIDES)}",
            remedy="mend features.train_side",
        )
    place = find_adapter(adapter, epoch=config.attribution.checkpoint)
    made_from = features_made_from(model, train, place, config)
    examples = load_train_set(train, text_column=config.data.text_column)
    base = load_base(resolve_model(model), config.model)
    adapted = load_adapter(base.model, place)
    adam = load_adam_state(place, adapted) if side in NEEDS_ADAM else None
    projection = projection_of(config, adapted)
    build_store(
        Path(out),
        made_from,
        adapted,
        base.encode(examples, strict=config.data.strict),
        [example.id for example in examples],
        TRAIN_SIDES[side](adam),
        projection,
        Pass(max_tokens=config.model.max_tokens, average=config.attribution.loss == "mean"),
        dtype=config.features.dtype,
    )
    return Path(out)


def features_made_from(
    model: str, train: str | Path, adapter: Path, config: Config
) -> dict[str, Any]:
    """Return everything that stored features depend on, as it stands in their manifest."""
    section = config.features
    return {
        "model": resolve_model(model).fingerprint,
        "adapter": folder_fingerprint(adapter),
        "dataset": file_fingerprint(train),
        "train_side": section.train_side,
        "projection": {
            "kind": section.projection,
            "dimensions": section.dimensions,
            "nonzeros": section.nonzeros,
        },
        "seed": config.seed,
        "loss": config.attribution.loss,
        "text_column": config.data.text_column,
        "strict": config.data.strict,
        "precision": model_settings(config)["dtype"],
    }


def projection_of(config: Config, model: Any) -> Projection:
    """Return the projection of the settings, for the adapter's parameters."""
    section = config.features
    return make_projection(
        section.projection,
        {name: parameter.numel() for name, parameter in lora_parameters(model)},
        k=section.dimensions,
        seed=config.seed,
        nonzeros=section.nonzeros,
    )


def open_features(
    folder: str | Path, model: str, train: str | Path, adapter: Path, config: Config
) -> FeatureStore:
    """Open a store for scoring with these inputs.

    Raises:
        DataError: If it was made from another model, adapter, train set or with other settings (the
            first difference is named), or is damaged.
    """
    return open_store(Path(folder), features_made_from(model, train, adapter, config))


def check_features(
    folder: str | Path,
    model: str,
    train: str | Path,
    probe: str | Path,
    adapter: str | Path,
    *,
    sample: int = 200,
    config: Config | None = None,
) -> Fidelity:
    """Compare scores from a store with exact ones, on a random sample of rows.

    Args:
        folder: Of the store.
        model: The model it was made with.
        train: The train set it was made of.
        probe: Probe pairs, or ``shipped``.
        adapter: The adapter it was made at.
        sample: Rows at most, drawn with the seed.
        config: As for `build_features`; ``selection`` says what is selected.

    Returns:
        For every estimator with the store's train side ``pearson`` and ``spearman`` between stored
        and exact scores, and ``overlap``, the share of the rows selected by exact scores that are
        selected by stored ones too; ``rows``.

    Raises:
        DataError: If the sample has fewer than three rows, or as `open_features`.
    """
    config = config or Config()
    place = find_adapter(adapter, epoch=config.attribution.checkpoint)
    store = open_features(folder, model, train, place, config)
    examples = load_train_set(train, text_column=config.data.text_column)
    base = load_base(resolve_model(model), config.model)
    adapted = load_adapter(base.model, place)
    side = config.features.train_side
    adam = load_adam_state(place, adapted) if side in NEEDS_ADAM else None
    draw = np.random.default_rng(config.seed).permutation(len(examples))[:sample]
    rows = sorted(int(row) for row in draw)
    if len(rows) < 3:
        raise DataError(
            f"{len(rows)} rows to compare", expected="at least 3", remedy="give a larger --sample"
        )
    encodings = base.encode(examples, strict=config.data.strict)
    pairs = load_pairs(probe)
    material = Material(
        model=adapted,
        tokenizer=base.tokenizer,
        max_length=base.max_length,
        max_tokens=config.model.max_tokens,
        examples=[examples[row] for row in rows],
        encodings=[encodings[row] for row in rows],
        pairs=pairs,
        probes=encode_probes(base, pairs, twins=True),
        seed=config.seed,
    )
    chosen = {
        name: Chosen(estimator, side, estimator.normalize)
        for name, estimator in ESTIMATORS.items()
        if isinstance(estimator, GradientEstimator)
        and estimator.train_side == side
        and estimator.curvature is None
    }
    how = Pass(max_tokens=config.model.max_tokens, average=config.attribution.loss == "mean")
    comparisons = comparisons_of(material, chosen, how, adam)
    exact, _ = gradient_sums(material, comparisons, how, None)
    projection = projection_of(config, adapted)
    found: Fidelity = {}
    for name, stored in store_sums(store, comparisons, projection).items():
        found[name] = fidelity(stored[rows].sum(1), exact[name].sum(1), config)
        say(f"  {name}: {found[name]}")
    return found


def fidelity(stored: torch.Tensor, exact: torch.Tensor, config: Config) -> dict[str, float]:
    """Return correlations and overlap of the selection between stored and exact scores, [n]."""
    a, b = stored.double().numpy(), exact.double().numpy()
    count = selected_count(len(a), fraction=config.selection.fraction, top_k=config.selection.top_k)
    top = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (a, b)]
    return {
        "pearson": float(stats.pearsonr(a, b).statistic),
        "spearman": float(stats.spearmanr(a, b).statistic),
        "overlap": len(top[0] & top[1]) / count,
        "selected": count,
        "rows": len(a),
    }
