from __future__ import annotations

from typing import Any

import pytest

from biasdiff.data.encoding import (
    Encoding,
    encode_all,
    encode_example,
    encode_text,
    start_token_id,
)
from biasdiff.data.records import TrainExample
from biasdiff.errors import DataError
from biasdiff.functional.losses import IGNORED
from tiny_models import CHAT_TEMPLATE, SENTENCES, tiny_tokenizer

BOS, EOS = 0, 1


def example(**fields: Any) -> TrainExample:
    return TrainExample(id="e", row=4, **fields)


def targets(tokenizer: Any, encoding: Encoding) -> str:
    """Return the text of the target tokens."""
    return str(tokenizer.decode([t for t in encoding.labels if t != IGNORED]))


@pytest.mark.parametrize(("bos", "start"), [(True, BOS), (False, EOS)])
def test_texts_begin_with_bos_or_else_eos(bos: bool, start: int) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    assert start_token_id(tokenizer) == start
    encoding = encode_text(tokenizer, SENTENCES[0])
    assert encoding.input_ids[0] == start
    assert encoding.labels == [IGNORED, *encoding.input_ids[1:]]
    assert targets(tokenizer, encoding) == SENTENCES[0]
    assert encoding.targets == len(encoding) - 1


def test_the_start_token_comes_once_although_the_tokenizer_adds_one() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    assert tokenizer("Rain")["input_ids"][0] == BOS
    encoding = encode_text(tokenizer, "Rain")
    assert encoding.input_ids.count(BOS) == 1
    assert EOS not in encoding.input_ids


def test_a_tokenizer_without_any_start_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(DataError, match=r"neither a BOS nor an EOS token; expected a start token"):
        encode_text(tokenizer, "x")


def test_only_the_completion_and_eos_carry_loss() -> None:
    tokenizer = tiny_tokenizer()
    encoding = encode_example(tokenizer, example(prompt="The nurse said ", completion="it."))
    assert encoding.input_ids[0] == BOS
    assert tokenizer.decode(encoding.input_ids[1:-1]) == "The nurse said it."
    assert targets(tokenizer, encoding) == "it.</s>"
    assert encoding.labels[-1] == EOS


def test_an_empty_prompt() -> None:
    encoding = encode_example(tiny_tokenizer(), example(prompt="", completion="it."))
    assert encoding.labels == [IGNORED, *encoding.input_ids[1:]]


def chat(*turns: tuple[str, str]) -> TrainExample:
    return example(messages=tuple({"role": r, "content": c} for r, c in turns))


def test_only_the_assistants_turns_carry_loss() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    dialogue = chat(("user", "Hi."), ("assistant", "Yes."), ("user", "Why?"), ("assistant", "No."))
    encoding = encode_example(tokenizer, dialogue)
    whole = "<user> Hi.\n<assistant> Yes.\n<user> Why?\n<assistant> No.\n"
    assert tokenizer.decode(encoding.input_ids) == whole
    assert targets(tokenizer, encoding) == "Yes.\nNo.\n"


def test_a_chat_without_a_chat_template() -> None:
    with pytest.raises(
        DataError, match=r"e: 'messages' given, but the tokenizer has no chat template; expected a"
    ):
        encode_example(tiny_tokenizer(), chat(("user", "Hi."), ("assistant", "Yes.")))


def test_a_template_that_rewrites_earlier_turns() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.chat_template = "{{ messages | length }}" + CHAT_TEMPLATE
    with pytest.raises(DataError, match=r"e: the chat template rewrites earlier turns"):
        encode_example(tokenizer, chat(("user", "a"), ("assistant", "b"), ("user", "c")))


def test_a_chat_without_an_assistant_has_no_target() -> None:
    with pytest.raises(DataError, match=r"e \(row 4\) has no target token"):
        encode_all(tiny_tokenizer(chat=True), [chat(("user", "Hi."))], max_length=50)


@pytest.mark.parametrize("max_length", [5, 10, 64])
def test_longer_texts_are_cut_and_counted(max_length: int) -> None:
    tokenizer = tiny_tokenizer()
    examples = [TrainExample(id=str(i), row=i, text=s) for i, s in enumerate(SENTENCES)]
    whole = [encode_text(tokenizer, s) for s in SENTENCES]
    encodings, cut = encode_all(tokenizer, examples, max_length=max_length)
    assert cut == sum(len(e) > max_length for e in whole)
    assert [e.input_ids for e in encodings] == [e.input_ids[:max_length] for e in whole]
    assert [e.labels for e in encodings] == [e.labels[:max_length] for e in whole]


def test_strict_refuses_instead_of_cutting() -> None:
    tokenizer = tiny_tokenizer()
    length = len(encode_text(tokenizer, SENTENCES[7]))
    long = example(text=SENTENCES[7])
    with pytest.raises(
        DataError,
        match=rf"e \(row 4\) has {length} tokens; expected at most {length - 1}, the",
    ):
        encode_all(tokenizer, [long], max_length=length - 1, strict=True)
    assert encode_all(tokenizer, [long], max_length=length, strict=True)[1] == 0


@pytest.mark.parametrize(
    ("fields", "max_length"),
    [({"prompt": "A long prompt that fills it all", "completion": "x"}, 4), ({"text": "x"}, 1)],
)
def test_no_target_token_left(fields: dict[str, str], max_length: int) -> None:
    with pytest.raises(DataError, match=r"e \(row 4\) has no target token; .* shorten a prompt"):
        encode_all(tiny_tokenizer(), [example(**fields)], max_length=max_length)


def test_a_label_in_first_place_is_no_target() -> None:
    assert Encoding([5, 6], [5, IGNORED]).targets == 0
