"""Sequence-classification models that a user names: of toxicity, sentiment and so on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from biasdiff.errors import ConfigError, ModelError, NonFiniteError
from biasdiff.functional.statistics import Floats
from biasdiff.models.loading import context_length, load_tokenizer, resolve_model
from biasdiff.progress import task

LABELS = ("toxic", "toxicity", "negative", "LABEL_1")
"""Names of the class that is measured, the first that a classifier has."""
_MAX_TOKENS = 512

Classify = Callable[[Sequence[str]], Floats]
"""From texts to probabilities of the measured class, [n]."""


def load_classifier(
    name: str,
    *,
    label: str | None = None,
    batch: int = 16,
    device: torch.device | str = "cpu",
    section: str,
) -> Classify:
    """Load a classifier and return what gives each text's probability of the measured class.

    Softmax over the classes; a sigmoid for one output or a model of several labels at a time
    (``problem_type: multi_label_classification``). An empty text has probability 0. Texts longer
    than the classifier's context are cut.

    Args:
        name: Folder or hub id.
        label: The measured class; None for the first of `LABELS`.
        batch: Texts at once; one at a time with a tokenizer that cannot pad.
        device: Where the classifier goes.
        section: Where ``classifier`` and ``label`` stand in the config, for error messages.

    Raises:
        ModelError: If it cannot be found or loaded, or has weights that start at random.
        ConfigError: If it has no class of that name.
    """
    model, tokenizer = _load(name, device, section)
    place = _class_number(name, label, model.config.id2label, section)
    several = model.config.problem_type == "multi_label_classification"
    sigmoid = several or model.config.num_labels == 1
    longest = min(context_length(model, tokenizer), _MAX_TOKENS)
    at_once = batch if tokenizer.pad_token is not None else 1

    def classify(texts: Sequence[str]) -> Floats:
        found = np.zeros(len(texts))
        filled = [i for i, text in enumerate(texts) if text.strip()]
        with task("classifier", len(filled)) as progress, torch.inference_mode():
            for start in range(0, len(filled), at_once):
                members = filled[start : start + at_once]
                inputs = tokenizer(
                    [texts[i] for i in members],
                    padding=at_once > 1,
                    truncation=True,
                    max_length=longest,
                    return_tensors="pt",
                ).to(device)
                logits = model(**inputs).logits.float()
                scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
                found[members] = scores[:, place].double().cpu().numpy()
                progress.advance(len(members))
        if not np.isfinite(found).all():
            raise NonFiniteError(
                f"{name}: a probability is not finite",
                expected="finite logits",
                remedy="check the classifier",
            )
        return found

    return classify


def _load(name: str, device: torch.device | str, section: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    source = resolve_model(name)
    tokenizer = load_tokenizer(source)
    logging.disable_progress_bar()
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.location,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=source.offline,
        )
    except Exception as error:  # loaders raise many unrelated types
        raise ModelError(
            f"the classifier {name} cannot be loaded "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]})",
            expected="a sequence-classification model of transformers",
            remedy=f"check {section}.classifier",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would start them at random
        raise ModelError(
            f"the classifier {name} lacks {len(missing)} tensors, for example {missing[0]}",
            expected="a model that was trained and saved as a sequence classifier",
            remedy=f"name another in {section}.classifier",
        )
    return model.to(device).eval(), tokenizer


def _class_number(name: str, label: str | None, names: Mapping[int, str], section: str) -> int:
    wanted = LABELS if label is None else (label,)
    for candidate in wanted:
        for number, own in names.items():
            if own.lower() == candidate.lower():
                return int(number)
    raise ConfigError(
        f"the classifier {name} has the classes {', '.join(names.values())}",
        expected=f"one called {' or '.join(wanted)}",
        remedy=f"name the class in {section}.label",
    )
