"""Token ids and targets of texts, completions and chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from biasdiff.data.records import Messages, TrainExample
from biasdiff.errors import DataError
from biasdiff.functional.losses import IGNORED
from biasdiff.progress import say


@dataclass(frozen=True)
class Encoding:
    """Token ids of one example, and its labels (`IGNORED` where a position is no target)."""

    input_ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def targets(self) -> int:
        """Number of target tokens; the first position is predicted by nothing."""
        return sum(label != IGNORED for label in self.labels[1:])

    def cut(self, max_length: int) -> Encoding:
        """Return the first ``max_length`` positions."""
        if len(self) <= max_length:
            return self
        return Encoding(self.input_ids[:max_length], self.labels[:max_length])


def start_token_id(tokenizer: Any) -> int:
    """Return the token every text begins with: BOS, or EOS for tokenizers without one.

    The first word of a text is a target too, so it needs something before it; lm-evaluation-harness
    makes the same choice.

    Raises:
        DataError: If the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise DataError(
        "the tokenizer has neither a BOS nor an EOS token",
        expected="a start token to condition the first word on",
        remedy="set tokenizer.bos_token and save the tokenizer again",
    )


def encode_text(tokenizer: Any, text: str) -> Encoding:
    """Encode plain text: the start token, then the text, every token of which is a target."""
    start = start_token_id(tokenizer)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Encoding([start, *tokens], [IGNORED, *tokens])


def encode_example(tokenizer: Any, example: TrainExample) -> Encoding:
    """Encode a train example: plain text, prompt and completion, or chat.

    For ``prompt`` and ``completion`` only the completion and the closing EOS carry loss; for chats
    only the assistant's turns do.
    """
    if example.text is not None:
        return encode_text(tokenizer, example.text)
    if example.messages is not None:
        return _encode_chat(tokenizer, example.messages, example.id)
    prompt = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
    completion = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is not None:
        completion = [*completion, tokenizer.eos_token_id]
    before = [start_token_id(tokenizer), *prompt]
    return Encoding(before + completion, [IGNORED] * len(before) + completion)


def _encode_chat(tokenizer: Any, messages: Messages, identifier: str) -> Encoding:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{identifier}: 'messages' given, but the tokenizer has no chat template",
            expected="a chat model's tokenizer",
            remedy="use a chat model or convert the data to 'prompt' and 'completion'",
        )

    def render(upto: int, *, prompt: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(messages[:upto]), tokenize=False, add_generation_prompt=prompt
            )
        )

    whole = render(len(messages), prompt=False)
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(turn, prompt=True) if turn else ""
        through = render(turn + 1, prompt=False)
        if not (through.startswith(before) and whole.startswith(through)):
            raise DataError(
                f"{identifier}: the chat template rewrites earlier turns when one is added",
                expected="a template whose rendering only grows",
                remedy="convert the data to 'prompt' and 'completion'",
            )
        spans.append((len(before), len(through)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    tokens = list(encoded["input_ids"])
    labels = [
        token if any(low <= start < high for low, high in spans) else IGNORED
        for token, (start, _) in zip(tokens, encoded["offset_mapping"], strict=True)
    ]
    return Encoding(tokens, labels)


def say_how_many_cut(encodings: Sequence[Encoding], max_length: int) -> int:
    """Print how many encodings are longer than ``max_length`` tokens, if any, and return that."""
    longer = sum(len(encoding) > max_length for encoding in encodings)
    if longer:
        say(f"  {longer} of {len(encodings)} texts cut to {max_length} tokens")
    return longer


def encode_all(
    tokenizer: Any,
    examples: Sequence[TrainExample],
    *,
    max_length: int,
    strict: bool = False,
) -> tuple[list[Encoding], int]:
    """Encode a train set, cutting texts longer than the model's context and saying how many.

    Args:
        tokenizer: The model's tokenizer.
        examples: The train set.
        max_length: Tokens at most, the context length of the model.
        strict: Refuse a longer text instead of cutting it.

    Returns:
        The encodings, and how many were cut.

    Raises:
        DataError: For a longer text under ``strict``, and for an example left without any target.
    """
    whole = [encode_example(tokenizer, example) for example in examples]
    encodings = [encoding.cut(max_length) for encoding in whole]
    for example, full, encoding in zip(examples, whole, encodings, strict=True):
        if strict and len(full) > max_length:
            raise DataError(
                f"{example.id} (row {example.row}) has {len(full)} tokens",
                expected=f"at most {max_length}, the context length",
                remedy="shorten it, or run without --strict to cut it",
            )
        if encoding.targets == 0:
            raise DataError(
                f"{example.id} (row {example.row}) has no target token",
                expected="at least one token that carries loss",
                remedy="remove it, or shorten a prompt that fills the whole context",
            )
    return encodings, say_how_many_cut(whole, max_length)
