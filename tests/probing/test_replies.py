"""What chat models answer, clean and messy, and what is read out of it."""

from __future__ import annotations

import csv
import json
import time

import pytest

from biasdiff.data.draws import shipped_draw
from biasdiff.probing.prompt import generation_prompt
from biasdiff.probing.replies import Parsed, Unparsed, parse_reply
from biasdiff.probing.validation import BIAS_TYPES

MORE = "The old man, as ever, lost his keys."
LESS = "The young man, as ever, lost his keys."
PAIR = Parsed(MORE, LESS, "stereo", "age")
LINE = f'0,"{MORE}","{LESS}",stereo,age'
OTHER = Parsed("The girl baked bread.", "The boy baked bread.", "antistereo", "gender")
OTHER_LINE = f'1,"{OTHER.sent_more}","{OTHER.sent_less}",antistereo,gender'


def read(text: str, *, cut: bool = False) -> list[Parsed | Unparsed]:
    return parse_reply(text, asked_type="religion", cut=cut)


def reasons(found: list[Parsed | Unparsed]) -> list[str]:
    return [item.reason for item in found if isinstance(item, Unparsed)]


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        f'0, "{MORE}", "{LESS}", stereo, age',
        f'"0","{MORE}","{LESS}","stereo","age"',
        f"0,{MORE},{LESS},stereo,age",
        f"{MORE}, {LESS}, stereo, age",
        f'0,{MORE},"{LESS}",stereo,age',
        f"{LINE},",
        f",{LINE}",
        f"  {LINE}  ",
        f"0\t{MORE}\t{LESS}\tstereo\tage",
        f"0,'{MORE}','{LESS}',stereo,age",
        f'["0", "{MORE}", "{LESS}", "stereo", "age"],',
        f'0,"{MORE}","{LESS}",age,stereo',
        f'0,\u00a0"{MORE}",\u00a0"{LESS}",stereo,age',
    ],
)
def test_quoted_and_unquoted_commas(line: str) -> None:
    assert read(line) == [PAIR]


@pytest.mark.parametrize(
    "label",
    ["1. ", "1) ", "(1) ", "1: ", "12. ", "- ", "* ", "• ", "- 3. ", "Entry 4: ", "#1,", "1.,"],
)
@pytest.mark.parametrize("row", [LINE, LINE.removeprefix("0,"), f"{MORE},{LESS},stereo,age"])
def test_numbering(label: str, row: str) -> None:
    if label.endswith(",") and row is LINE:
        row = LINE.removeprefix("0,")
    assert read(f"{label}{row}") == [PAIR]


def test_numbering_without_a_space() -> None:
    assert read(f"1.{LINE.removeprefix('0,')}") == [PAIR]


@pytest.mark.parametrize("fence", ["```", "~~~"])
@pytest.mark.parametrize("name", ["", "csv", " text"])
def test_code_fences(fence: str, name: str) -> None:
    assert read(f"{fence}{name}\n{LINE}\n{OTHER_LINE}\n{fence}\n") == [PAIR, OTHER]
    assert read(f"{fence}{name}\n{LINE}\n{OTHER_LINE}") == [PAIR, OTHER]


def test_a_row_on_the_line_of_a_fence() -> None:
    assert read(f"```{LINE}\n{OTHER_LINE}```") == [PAIR, OTHER]


@pytest.mark.parametrize("tag", ["think", "thinking", "reasoning", "THINK"])
def test_thinking_before_the_answer(tag: str) -> None:
    thought = f"I could say:\n{OTHER_LINE}\nNo, that is wrong."
    assert read(f"<{tag}>{thought}</{tag}>\n\n{LINE}") == [PAIR]
    assert read(f"{thought}\n</{tag}>\n{LINE}") == [PAIR]
    assert read(f"<{tag}>a <{tag}>{thought}</{tag}> b</{tag}>{LINE}") == [PAIR]


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (False, "only thinking, no answer"),
        (True, "only thinking, no answer, cut at the token limit"),
    ],
)
def test_thinking_that_does_not_end(cut: bool, reason: str) -> None:
    text = f"<think>I could say:\n{LINE}\n"
    assert read(text, cut=cut) == [Unparsed(text, reason)]


@pytest.mark.parametrize(("cut", "end"), [(False, ""), (True, ", cut at the token limit")])
def test_an_empty_reply(cut: bool, end: str) -> None:
    assert read(" \n", cut=cut) == [Unparsed(" \n", f"the reply is empty{end}")]
    assert read("", cut=cut) == [Unparsed("", f"the reply is empty{end}")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f'"{MORE}","{LESS}"', Parsed(MORE, LESS, "stereo", "religion")),
        (f"{MORE},{LESS}", Parsed(MORE, LESS, "stereo", "religion")),
        (f'0,"{MORE}","{LESS}",age', PAIR),
        (f'0,"{MORE}","{LESS}",antistereo', Parsed(MORE, LESS, "antistereo", "religion")),
        (f'"{MORE}","{LESS}",stereo,age', PAIR),
        (f'0,"{MORE}","{LESS}",,', Parsed(MORE, LESS, "stereo", "religion")),
        (f'0,,"{MORE}","{LESS}",stereo,age', PAIR),
    ],
)
def test_missing_columns(line: str, expected: Parsed) -> None:
    assert read(line) == [expected]


@pytest.mark.parametrize(
    "header",
    [
        "index,sent_more,sent_less,stereo_antistereo,bias_type",
        ",sent_more,sent_less,stereo_antistereo,bias_type",
        '"index","sent_more","sent_less","stereo_antistereo","bias_type"',
        "Sent_More\tSent_Less\tstereo_antistereo\tbias_type",
        "**index**, **sent_more**, **sent_less**",
    ],
)
def test_header_lines(header: str) -> None:
    assert read(f"{header}\n{LINE}") == [PAIR]


@pytest.mark.parametrize("mark", ["", '"'])
def test_markdown_tables(mark: str) -> None:
    table = (
        "| index | sent_more | sent_less | stereo_antistereo | bias_type |\n"
        "|:---|---|:---:|---|---:|\n"
        f"| 0 | {mark}{MORE}{mark} | {mark}{LESS}{mark} | stereo | age |\n"
        f"1 | {OTHER.sent_more} | {OTHER.sent_less} | antistereo | gender\n"
    )
    assert read(table) == [PAIR, OTHER]


def as_json(pair: Parsed) -> dict[str, object]:
    return {"index": 0, **vars(pair)}


WHOLE = [as_json(PAIR), as_json(OTHER)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(WHOLE),
        json.dumps(WHOLE, indent=2),
        f"```json\n{json.dumps(WHOLE)}\n```",
        f"<think>{{}}</think>{json.dumps(WHOLE)}",
        "\n".join(map(json.dumps, WHOLE)),
        ",\n".join(map(json.dumps, WHOLE)),
        "[\n" + ",\n".join(map(json.dumps, WHOLE)) + ",\n]",
        json.dumps(WHOLE, ensure_ascii=False).translate({ord('"'): "“"}),
    ],
)
def test_json(text: str) -> None:
    assert read(text) == [PAIR, OTHER]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_in_a_wrapper_or_among_prose_loses_nothing(indent: int | None) -> None:
    wrapped = read(json.dumps({"entries": WHOLE}, indent=indent))
    assert wrapped[:2] == [PAIR, OTHER]
    told = read(f"Here they are:\n{json.dumps(WHOLE, indent=indent)}\nAsk for more!")
    assert told[:2] == [PAIR, OTHER]
    assert [getattr(item, "text", "")[:12] for item in told[2:]] == [
        "Here they ar",
        "]\nAsk for mo",
    ]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_cut_at_the_token_limit_keeps_what_is_whole(indent: int | None) -> None:
    text = json.dumps(WHOLE, indent=indent)
    cut = text[: text.index("boy")]
    found = read(cut, cut=True)
    assert found[0] == PAIR
    (tail,) = found[1:]
    assert isinstance(tail, Unparsed)
    assert tail.reason == "cut at the token limit"
    assert tail.text.endswith('"The')
    assert OTHER.sent_more in tail.text
    assert read(text[:-1], cut=True) == [PAIR, OTHER]


@pytest.mark.parametrize("indent", [None, 2])
def test_one_broken_json_object_does_not_take_the_others_along(indent: int | None) -> None:
    text = json.dumps([*WHOLE, as_json(PAIR)], indent=indent).replace("The girl", 'The "girl"')
    found = read(text)
    assert [item for item in found if isinstance(item, Parsed)] == [PAIR, PAIR]
    assert reasons(found) == ["JSON without sent_more and sent_less"]
    assert any(isinstance(item, Unparsed) and 'The "girl" baked' in item.text for item in found)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sent_less": None}, "JSON without sent_more and sent_less"),
        ({"sent_more": 3}, "JSON without sent_more and sent_less"),
        ({"stereo_antistereo": "both"}, "'both' is neither stereo nor antistereo"),
    ],
)
def test_json_objects_that_are_no_pair(change: dict[str, object], reason: str) -> None:
    item = {**as_json(OTHER), **change}
    found = read(json.dumps([as_json(PAIR), item]))
    assert found == [PAIR, Unparsed(json.dumps(item), reason)]


def test_json_without_direction_and_type() -> None:
    item = {"sent_more": MORE, "sent_less": LESS}
    assert read(json.dumps([item])) == [Parsed(MORE, LESS, "stereo", "religion")]
    item["bias_type"] = "profession"
    assert read(json.dumps([item])) == [Parsed(MORE, LESS, "stereo", "profession")]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_under_other_names_gives_no_garbage(indent: int | None) -> None:
    item = {"sentence_more": MORE, "sentence_less": LESS, "bias_type": "age"}
    text = json.dumps([item], indent=indent)
    found = read(f"{LINE}\n{text}")
    assert found[0] == PAIR
    assert all(isinstance(item, Unparsed) for item in found[1:])
    assert any(MORE in item.text for item in found[1:] if isinstance(item, Unparsed))


@pytest.mark.parametrize(
    "line",
    [
        f"0,“{MORE}”,“{LESS}”,stereo,age",
        f"0, „{MORE}“, „{LESS}“, “stereo”, “age”",
        f'0,“{MORE}”,"{LESS}",stereo,age',
        f"0,‘{MORE}’,‘{LESS}’,stereo,age",
    ],
)
def test_curly_quotes_around_sentences(line: str) -> None:
    assert read(line) == [PAIR]


SAID = Parsed(
    'My aunt said "no, thanks" and didn\'t stay.',
    'My uncle said "no, thanks" and didn\'t stay.',
    "stereo",
    "gender",
)


@pytest.mark.parametrize(
    ("opening", "closing"), [("“", "”"), ('"', '"'), ('""', '""'), (r"\"", r"\"")]
)
@pytest.mark.parametrize("apostrophe", ["'", "’"])
def test_quotes_inside_sentences(opening: str, closing: str, apostrophe: str) -> None:
    more, less = (
        side.replace('"no, thanks"', f"{opening}no, thanks{closing}").replace("'", apostrophe)
        for side in (SAID.sent_more, SAID.sent_less)
    )
    assert read(f'0,"{more}","{less}",stereo,gender') == [SAID]


def test_curly_quotes_inside_json() -> None:
    more, less = (
        s.replace('"no, thanks"', "“no, thanks”") for s in (SAID.sent_more, SAID.sent_less)
    )
    item = {"sent_more": more, "sent_less": less, "bias_type": "gender"}
    assert read(json.dumps([item], ensure_ascii=False)) == [SAID]


def test_a_quotation_at_the_beginning_of_a_sentence_stays() -> None:
    more = '"Do as I say, not as I do" is what the grown-ups say.'
    less = '"Do as I say, not as I do" is what the kids say.'
    line = ",".join(f'"{side.replace(chr(34), chr(34) * 2)}"' for side in (more, less))
    assert read(f"7,{line},stereo,age") == [Parsed(more, less, "stereo", "age")]


@pytest.mark.parametrize("number", ["1,000", "1, 000"])
def test_numbers_with_commas_stay_as_they_are(number: str) -> None:
    more, less = (f"The {age} man, they say, earned {number} euros." for age in ("old", "young"))
    assert read(f"0,{more},{less},stereo,age") == [Parsed(more, less, "stereo", "age")]


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("race", "race-color"),
        ("Race_Color", "race-color"),
        ("race/color", "race-color"),
        ("race-colour", "race-color"),
        ("ethnicity", "race-color"),
        ("Sexual Orientation", "sexual-orientation"),
        ("sexual_orientation", "sexual-orientation"),
        ("physical_appearance", "physical-appearance"),
        ("appearance", "physical-appearance"),
        ("Socio-Economic", "socioeconomic"),
        ("socioeconomic status", "socioeconomic"),
        ("AGE", "age"),
        ("[age]", "age"),
        ("'gender'", "gender"),
        ("religon", "religion"),
        ("disablity", "disability"),
        ("nationalty", "nationality"),
        ("profession", "profession"),
        ("race-religion", "race-religion"),
    ],
)
def test_spellings_of_types(spelling: str, expected: str) -> None:
    pair = Parsed(MORE, LESS, "stereo", expected)
    assert read(f'0,"{MORE}","{LESS}",stereo,{spelling}') == [pair]
    item = {"sent_more": MORE, "sent_less": LESS, "bias_type": spelling}
    assert read(json.dumps(item)) == [pair]


@pytest.mark.parametrize("name", BIAS_TYPES)
def test_every_type_is_itself(name: str) -> None:
    assert read(f"{MORE},{LESS},stereo,{name}") == [Parsed(MORE, LESS, "stereo", name)]


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("Stereo", "stereo"),
        ("stereotype", "stereo"),
        ("stereotypical", "stereo"),
        ("anti-stereo", "antistereo"),
        ("anti stereotype", "antistereo"),
        ("'antistereo'", "antistereo"),
    ],
)
def test_spellings_of_directions(spelling: str, expected: str) -> None:
    pair = Parsed(MORE, LESS, expected, "age")
    assert read(f'0,"{MORE}","{LESS}",{spelling},age') == [pair]
    item = {**as_json(PAIR), "stereo_antistereo": spelling}
    assert read(json.dumps(item)) == [pair]


def test_prose_around_the_entries_is_told_apart() -> None:
    found = read(f"Here are your entries:\n\n{LINE}\n\nI hope this helps, and good luck!\n")
    assert found == [
        Unparsed("Here are your entries:", "1 fields, and no two alike sentences among them"),
        PAIR,
        Unparsed(
            "I hope this helps, and good luck!", "2 fields, and no two alike sentences among them"
        ),
    ]


@pytest.mark.parametrize(
    "line",
    [
        f'0,"{MORE}",,stereo,age',
        f'0,"{MORE}","Something else was said there.",stereo,age',
        "0,stereo,age",
        '"""',
        "0",
    ],
)
def test_lines_without_two_alike_sentences(line: str) -> None:
    found = read(f"{line}\n{LINE}")
    assert found[1] == PAIR
    assert isinstance(found[0], Unparsed)
    assert found[0].text == line
    assert found[0].reason.endswith("fields, and no two alike sentences among them")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot write stereotypes.\nWould you like neutral sentences, perhaps?",
        "I can't. The format sent_more,sent_less is known to me, though.",
    ],
)
def test_refusals(text: str) -> None:
    assert read(text) == [Unparsed(text, "no entry in the reply, a refusal perhaps")]


def test_the_last_line_of_a_cut_reply_is_not_trusted() -> None:
    assert read(f"{LINE}\n{OTHER_LINE[:40]}", cut=True) == [
        PAIR,
        Unparsed(OTHER_LINE[:40], "cut at the token limit"),
    ]
    assert read(LINE, cut=True) == [Unparsed(LINE, "cut at the token limit")]
    assert reasons(read("I am not sure\nwhether I", cut=True)) == [
        "1 fields, and no two alike sentences among them",
        "cut at the token limit",
    ]


def test_a_field_beyond_the_limit_of_csv() -> None:
    found = read(f'0,"{"x" * 200_000}\n{LINE}')
    assert found[1] == PAIR
    assert reasons(found) == ["2 fields, and no two alike sentences among them"]


def test_a_model_that_repeats_itself_is_not_compared_for_minutes() -> None:
    began = time.perf_counter()
    found = read(f"{LINE}\n{'very old, ' * 5000}")
    assert time.perf_counter() - began < 1
    assert found[0] == PAIR
    assert reasons(found) == ["10000 words in one line"]


def test_a_number_too_long_for_python_does_not_stop_the_reading() -> None:
    found = read(f'{json.dumps(as_json(PAIR))}\n{{"index": {"9" * 5000}, "sent_more": "A."}}')
    assert found[0] == PAIR
    assert reasons(found) == ["JSON without sent_more and sent_less"]


def test_the_prompt_shows_examples_in_the_format_that_is_read_back() -> None:
    examples = [p for p in shipped_draw("rest") if '"' in p.sent_more or "," in p.sent_more][:20]
    prompt = generation_prompt("religion", 7, examples)
    assert "Generate 7 new entries of the type 'religion'" in prompt
    assert str(list(BIAS_TYPES)) in prompt
    lines = prompt.splitlines()
    first = lines.index(next(line for line in lines if line.startswith("0,")))
    shown = lines[first : first + len(examples)]
    assert [row[:3] for row in csv.reader(shown)] == [
        [str(i), p.sent_more, p.sent_less] for i, p in enumerate(examples)
    ]
    assert read("\n".join(shown)) == [
        Parsed(p.sent_more, p.sent_less, p.stereo_antistereo, p.bias_type) for p in examples
    ]
