"""Tiny random sequence classifiers, saved to disk with the tiny tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from tiny_models import tiny_tokenizer


def save_classifier(folder: Path, labels: list[str], **config: Any) -> Path:
    """Write a random BERT classifier; its tokenizer can pad unless ``pad`` is False."""
    tokenizer = tiny_tokenizer()
    if config.pop("pad", True):
        tokenizer.pad_token = "</s>"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=24,
                max_position_embeddings=64,
                initializer_range=0.5,
                pad_token_id=1,
                id2label=dict(enumerate(labels)),
                label2id={name: i for i, name in enumerate(labels)},
                **config,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
