"""Public corpora as probe sets, which the paper's Table 9 and Figure 5 compare with its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from biasdiff.data.draws import shipped_draw
from biasdiff.data.mixtures.build import build_mixture
from biasdiff.data.mixtures.recipes import MIXTURES
from biasdiff.data.probe import ProbePair
from biasdiff.data.sources import crows_pairs, seat, stereoset, winobias
from biasdiff.data.sources.corpus import SetAside
from biasdiff.data.sources.finding import get_files, read_corpus
from biasdiff.errors import DataError, nearest

_RACE, _GENDER = "race-color", "gender"
SEAT_TYPES = {
    "weat3": _RACE,
    "weat3b": _RACE,
    "weat4": _RACE,
    "weat5": _RACE,
    "weat5b": _RACE,
    "weat6": _GENDER,
    "weat6b": _GENDER,
    "weat7": _GENDER,
    "weat7b": _GENDER,
    "weat8": _GENDER,
    "weat8b": _GENDER,
    "weat9": "disability",
    "weat10": "age",
    "religion1": "religion",
    "religion1b": "religion",
    "religion2": "religion",
    "religion2b": "religion",
    "angry_black_woman_stereotype": _RACE,
    "angry_black_woman_stereotype_b": _RACE,
    "heilman_double_bind_competent_one_word": _GENDER,
    "heilman_double_bind_likable_one_word": _GENDER,
}
"""Kind of bias of each sentence test; weat1 and weat2 (flowers, instruments) have none."""
STEREOSET_TYPES = {
    "race": _RACE,
    "gender": _GENDER,
    "religion": "religion",
    "profession": "profession",
}
BALANCE_SIZE = 3000


def probe_from(name: str, *, seed: int = 0) -> list[ProbePair]:
    """Return a corpus, or a draw of the shipped pairs, as probe pairs.

    `crows_pairs`: its pairs. `stereoset`: stereotype against anti-stereotype, the context before
    the sentence in the intersentence part. `wino`: WinoBias, pro- against anti-stereotyped.
    `balance` (the mixture's biased sentences) and `seat` (target and attribute sentences of the
    tests about people) have no twins, so only estimators that need none can use them.

    Raises:
        DataError: If there is no probe source of that name, or its files cannot be had.
    """
    if name not in PROBE_SOURCES:
        raise DataError(
            f"no probe can be made of {name!r}{nearest(name, PROBE_SOURCES)}",
            expected=f"one of {', '.join(PROBE_SOURCES)}",
            remedy="mend the name",
        )
    pairs = PROBE_SOURCES[name](seed)
    return [replace(pair, row=row) for row, pair in enumerate(pairs)]


def _made(more: str, less: str, bias_type: str, source: str, name: str) -> ProbePair:
    extra = {"id": name, "stereotype_id": f"{source}:{name}", "provenance": source}
    return ProbePair(more, less, "stereo", bias_type, 0, extra)


def _crows_pairs(_: int) -> list[ProbePair]:
    pairs = crows_pairs.pairs(get_files(crows_pairs.CORPUS))
    return [_marked(pair) for pair in pairs if not isinstance(pair, SetAside)]


def _marked(pair: ProbePair) -> ProbePair:
    made = _made("", "", "", "crows_pairs", pair.extra["id"])
    return replace(pair, extra=made.extra)


def _stereoset(_: int) -> list[ProbePair]:
    found = stereoset.items(get_files(stereoset.CORPUS))
    return [
        _made(
            item.whole(item.stereotype),
            item.whole(item.anti_stereotype),
            STEREOSET_TYPES.get(item.bias_type, item.bias_type),
            "stereoset",
            item.id,
        )
        for item in found
        if not isinstance(item, SetAside)
    ]


def _wino(_: int) -> list[ProbePair]:
    sides: dict[str, dict[int | None, str]] = {}
    for record in read_corpus(winobias.CORPUS).records:
        sides.setdefault(record.group, {})[record.is_bias] = record.text
    return [
        _made(texts[1], texts[0], _GENDER, "winobias", name)
        for name, texts in sides.items()
        if 1 in texts and 0 in texts and texts[1] != texts[0]
    ]


def _seat(_: int) -> list[ProbePair]:
    seen: set[str] = set()
    pairs = []
    for record in read_corpus(seat.CORPUS).records:
        bias_type = SEAT_TYPES.get(record.extra["test"].removeprefix("sent-"))
        sentence = record.extra["test"].startswith("sent-")
        if sentence and bias_type and record.text not in seen:
            seen.add(record.text)
            pairs.append(_made(record.text, "", bias_type, "seat", record.id))
    return pairs


def _balance(seed: int) -> list[ProbePair]:
    mixture = build_mixture(MIXTURES["balance"], size=BALANCE_SIZE, seed=seed)
    return [
        _made(row.text, "", row.bias_type or "hate", row.source, row.id)
        for row in mixture.rows
        if row.is_bias
    ]


PROBE_SOURCES: dict[str, Callable[[int], list[ProbePair]]] = {
    "crows_pairs": _crows_pairs,
    "stereoset": _stereoset,
    "wino": _wino,
    "seat": _seat,
    "balance": _balance,
    **{
        draw: lambda _, draw=draw: shipped_draw(draw)  # type: ignore[misc]
        for draw in ("reference", "validation", "test", "rest")
    },
}
