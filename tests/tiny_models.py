"""Tiny random models of real architectures, saved to disk with a tiny real tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from biasdiff.data.batching import make_batch
from biasdiff.data.encoding import Encoding, encode_text
from biasdiff.functional.losses import example_losses
from biasdiff.models.loading import load_model, load_tokenizer, resolve_model
from biasdiff.models.lora import LoraSettings, add_adapter, lora_parameters

SENTENCES = (
    "The nurse said she would be late.",
    "The nurse said he would be late.",
    "Water boils at one hundred degrees at sea level.",
    "The old man could not use the computer.",
    "The young man could not use the computer.",
    "Paris is the capital of France.",
    "Rain falls.",
    "The engineer fixed his bridge before the long winter came to the valley.",
    "A cat sleeps on the warm stone wall behind the house.",
    "The boss shouted at her secretary.",
)
CONTEXT = 64
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": CONTEXT}


def tiny_tokenizer(*, bos: bool = True, chat: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on `SENTENCES`; it can encode any text."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    special = {"bos_token": "<s>"} if bos else {}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", model_max_length=CONTEXT, **special
    )
    if chat:
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _config(architecture: str, vocab_size: int) -> PreTrainedConfig:
    tokens = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    spread = {"initializer_range": 0.15}
    opt = {**SIZES, **tokens, "ffn_dim": 48, "max_position_embeddings": CONTEXT, "init_std": 0.15}
    configs: dict[str, Any] = {
        "llama": lambda: LlamaConfig(**SIZES, **GROUPED, **tokens, **spread),
        "qwen2": lambda: Qwen2Config(**SIZES, **GROUPED, **tokens, **spread),
        "opt": lambda: OPTConfig(**opt, word_embed_proj_dim=32),
        "opt-350m": lambda: OPTConfig(**opt, word_embed_proj_dim=16, do_layer_norm_before=False),
        "gpt2": lambda: GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **tokens, **spread
        ),
        "gemma3": lambda: Gemma3TextConfig(
            **SIZES, **GROUPED, **tokens, **spread, head_dim=8, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8,
        ),
    }  # fmt: skip
    return configs[architecture]()


ARCHITECTURES = ("llama", "qwen2", "opt", "opt-350m", "gpt2", "gemma3")


def save_tiny_model(
    folder: Path, architecture: str, *, seed: int = 0, bos: bool = True, chat: bool = False
) -> Path:
    """Write a random model of an architecture and its tokenizer, as save_pretrained does."""
    tokenizer = tiny_tokenizer(bos=bos, chat=chat)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            _config(architecture, len(tokenizer)), dtype=torch.float32
        )
        for parameter in model.parameters():  # biases and norms too, which start at 0 and 1
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_tiny(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load model and tokenizer back through biasdiff."""
    source = resolve_model(str(folder))
    return load_model(source, dtype=dtype), load_tokenizer(source)


def randomise_lora(model: Any, *, seed: int = 0, scale: float = 0.2) -> Any:
    """Draw all LoRA weights at random, so that B is not zero and both get gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in lora_parameters(model):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(noise * scale)
    return model


def adapt(
    base: Any,
    *,
    rank: int = 3,
    alpha: float = 6,
    targets: Sequence[str] = (),
    dropout: float = 0.0,
) -> Any:
    """Wrap a base model with a LoRA adapter in the model's own dtype, all weights random."""
    settings = LoraSettings(rank, alpha, dropout, tuple(targets))  # type: ignore[arg-type]
    model = add_adapter(base, settings, seed=0)
    for _, parameter in lora_parameters(model):
        parameter.data = parameter.data.to(base.dtype)
    return randomise_lora(model).eval()


def encode_sentences(tokenizer: Any, sentences: Sequence[str] = SENTENCES) -> list[Encoding]:
    return [encode_text(tokenizer, sentence) for sentence in sentences]


def slow_gradients(model: Any, encoding: Encoding) -> dict[str, torch.Tensor]:
    """Return the gradient of one example's mean loss by saved name, with plain autograd."""
    batch = make_batch([encoding])
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
    named = dict(lora_parameters(model))
    loss = example_losses(model(**inputs, use_cache=False).logits, batch["labels"])[0]
    gradients = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, gradients, strict=True))


def slow_vector(model: Any, encoding: Encoding) -> torch.Tensor:
    """Return the same gradient as one float64 vector, all parameters concatenated."""
    return torch.cat([g.double().flatten() for g in slow_gradients(model, encoding).values()])
