"""Small files in the originals' formats, written for the tests; no row is taken from a corpus."""

from __future__ import annotations

import json
from pathlib import Path

CROWS_PAIRS = """,sent_more,sent_less,stereo_antistereo,bias_type,annotations
0,"The old man, as ever, lost his keys.","The young man, as ever, lost his keys.",stereo,age,[]
1,Rich people tip well.,Poor people tip well.,antistereo,socioeconomic,[]
2,,Poor people tip well.,stereo,socioeconomic,[]
3,A.,B.,both,age,[]
4,too,few
"""
BUG = """,uid,sentence_text,tokens,profession,g,stereotype,corpus
0,0,"The nurse , who said she was tired , did n't stay .",[],nurse,she,1,test
1,1,"The doctor â€“ a well - known one â€“ lost her pen .",[],doctor,her,-1,test
2,2,The guest found his coat .,[],guest,his,0,test
3,3,The guest found his coat .,[],guest,his,7,test
"""
GAP = (
    "ID\tText\tPronoun\tPronoun-offset\tA\tA-offset\tA-coref\tB\tB-offset\tB-coref\tURL\n"
    'development-1\tAnn said "yes to Beth and took her bag.'
    "\ther\t30\tAnn\t0\tTRUE\tBeth\t17\tFALSE\tu\n"
    "development-2\tToo few fields\ther\n"
)
HATESPEECH = """,count,hate_speech,offensive_language,neither,class,tweet
0,3,0,0,3,2,RT @a: tea &amp; cake
1,3,0,3,0,1,"two
lines"
2,3,3,0,0,0,nasty
3,3,0,0,3,9,unknown class
"""
AG_NEWS = (
    '"3","Fuel  #36;2 a gallon","AIR (Reuters) - It isn #39;t cheap,\\ said  quot;Bob quot; '
    '&lt;b&gt;today&lt;/b&gt;."\n'
    '"9","Odd","class"\n'
)
WIKITEXT = """
 = Lobster =

 The lobster is a well @-@ known animal , 1 @,@ 000 of which were seen .
 It has an <unk> shell .
 = = Habitat = =
 It lives in " the sea " .
"""


def _write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _toxicity(text: str, more: str, scores: tuple[float | None, float | None], begin: int) -> str:
    prompt, continuation = scores
    row = {
        "filename": "f.txt",
        "begin": begin,
        "prompt": {"text": text, "toxicity": prompt},
        "continuation": {"text": more, "toxicity": continuation},
    }
    return json.dumps(row)


def _stereoset_item(name: str, labels: list[str]) -> dict[str, object]:
    sentences = [{"sentence": f"They are {label}.", "gold_label": label} for label in labels]
    return {
        "id": name,
        "target": "bakers",
        "bias_type": "profession",
        "context": "Two bakers came.",
        "sentences": sentences,
    }


BBQ = {
    "Age": (["grandson", "nonOld"], ["grandfather", "old"], ["old"]),
    "Disability_status": (["guest", "nonDisabled"], ["deaf guest", "disabled"], ["disabled"]),
    "Gender_identity": (["Ann", "F"], ["man", "man"], ["M"]),
    "Nationality": (["Malian", "Africa"], ["Dane", "Europe"], ["Danish", "Dane"]),
    "Physical_appearance": (["tall guest", "tall"], ["guest", "short"], ["short"]),
    "Race_ethnicity": (
        ["Bo Hill", "M-White"],
        ["Al Ray", "M-Black"],
        ["African American", "Black"],
    ),
    "Race_x_SES": (["Black baker", "highSES-Black"], ["White baker", "lowSES-White"], ["Black"]),
    "Race_x_gender": (["Black man", "M-Black"], ["Black woman", "F-Black"], ["Black"]),
    "Religion": (["Hindu", "Hindu"], ["Sikh", "Sikh"], ["Sikh"]),
    "SES": (["baker", "lowSES"], ["banker", "highSES"], ["low SES"]),
    "Sexual_orientation": (["gay guest", "gay"], ["guest", "straight"], ["gay", "lesbian"]),
}
"""What the three fields hold: the answers' words and groups, and the stereotyped groups."""


def bbq_row(category: str, number: int, **changed: object) -> dict[str, object]:
    """Return one of a template's four questions: 0 and 1 negative, 0 and 2 ambiguous."""
    first, second, groups = BBQ[category]
    ambiguous = number % 2 == 0
    return {
        "example_id": number,
        "question_index": "1",
        "question_polarity": "neg" if number % 4 < 2 else "nonneg",
        "context_condition": "ambig" if ambiguous else "disambig",
        "category": category,
        "answer_info": {"ans0": first, "ans1": ["Not known", "unknown"], "ans2": second},
        "additional_metadata": {"subcategory": "None", "stereotyped_groups": groups},
        "context": "Two came to tea." + ("" if ambiguous else " One was late."),
        "question": "Who was late?" if number % 4 < 2 else "Who was on time?",
        "ans0": f"The {first[0]}",
        "ans1": "Not known",
        "ans2": f"The {second[0]}",
        "label": 1 if ambiguous else 2 * (number % 4 // 2),
        **changed,
    }


def write_corpora(folder: Path) -> Path:
    """Write a small file for every corpus into a data folder, and return it."""
    three = ["anti-stereotype", "unrelated", "stereotype"]
    _write(folder, "crows_pairs/crows_pairs_anonymized.csv", CROWS_PAIRS)
    _write(folder, "bug/gold_BUG.csv", BUG)
    for name in ("development", "test", "validation"):
        _write(folder, f"gap/gap-{name}.tsv", GAP.replace("development-", f"{name}-"))
    _write(folder, "hatespeech/labeled_data.csv", HATESPEECH)
    _write(folder, "ag_news/test.csv", AG_NEWS)
    for split in ("valid", "test"):
        _write(folder, f"wikitext2/wiki.{split}.tokens", WIKITEXT)
    stereoset = {
        "data": {
            "intrasentence": [_stereoset_item("a", three), _stereoset_item("b", three[:2])],
            "intersentence": [_stereoset_item("c", three)],
        }
    }
    _write(folder, "stereoset/dev.json", json.dumps(stereoset))
    _write(
        folder,
        "realtoxicityprompts/quark_val.jsonl",
        "\n".join(
            [
                _toxicity("You are", " a fool.", (0.2, 0.9), 1),
                _toxicity("Tea is", " nice.", (0.01, 0.02), 2),
                _toxicity("Not", " scored.", (None, 0.1), 3),
                _toxicity("You are", " a fool.", (0.2, 0.9), 1),
                '{"filename": "g.txt", "begin": 4, "prompt": null}',
                "{broken",
            ]
        ),
    )
    for side, pronoun in (("pro", "he"), ("anti", "she")):
        for kind in (1, 2):
            for split in ("dev", "test"):
                _write(
                    folder,
                    f"winobias/{side}_stereotyped_type{kind}.txt.{split}",
                    f"1 [The guard] woke the cook because [{pronoun}] heard a {split} {kind}.\n"
                    "no number\n",
                )
    _write(
        folder,
        "winogender/all_sentences.tsv",
        "sentid\tsentence\n"
        "cook.guest.0.male.txt\tThe cook told the guest that he was late.\n"
        "cook.guest\tNo gender.\n",
    )
    _write(folder, "winogender/occupations-stats.tsv", "occupation\tbls_pct_female\ncook\t40\n")
    for category in BBQ:
        lines = [json.dumps(bbq_row(category, number)) for number in range(4)]
        _write(folder, f"bbq/{category}.jsonl", "\n".join(lines))
    _write_seat(folder)
    _write_trex(folder)
    return folder


def _write_seat(folder: Path) -> None:
    from biasdiff.data.sources.seat import CORPUS

    sets = {
        role: {"category": role.upper(), "examples": [f"This is {role} {n}." for n in range(2)]}
        for role in ("targ1", "targ2", "attr1", "attr2")
    }
    for file in CORPUS.files:
        _write(folder, file.path, json.dumps(sets, indent=1))


def _write_trex(folder: Path) -> None:
    from biasdiff.data.sources.trex import CORPUS, RELATIONS_FILE

    for file in CORPUS.files:
        if file.needed:
            _write(folder, file.path, "")
    _write(folder, RELATIONS_FILE.path, '{"relation": "P19", "label": "place of birth"}\n')
    evidence = {
        "sub_surface": "Ada",
        "obj_surface": "Bath, England",
        "masked_sentence": "Ada was born in [MASK].",
    }
    fact = {"uuid": "u1", "obj_label": "Bath", "predicate_id": "P19", "evidences": [evidence] * 2}
    _write(folder, "trex/TREx/P19.jsonl", f'{json.dumps(fact)}\n{{"uuid": "u2"}}\n')
