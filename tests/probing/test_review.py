"""Decisions by HTTP as the page sends them, on a real server of this process or of a killed one."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from biasdiff.cli.app import app
from biasdiff.data.probe import ProbePair, load_probe_pairs, save_probe_pairs
from biasdiff.errors import ArtifactError, DataError
from biasdiff.probing.lexicon import GroupWord, Lexicon, save_lexicon
from biasdiff.probing.review import (
    LARGEST_BODY,
    QUESTIONS,
    Decision,
    Review,
    decision_from,
    review_server,
)
from biasdiff.probing.validation import BIAS_TYPES

LEXICON = Lexicon([GroupWord("age", "old", "young"), GroupWord("gender", "woman", "man")])
FACE: dict[str, Any] = {"sent_more": "The old cook sang.", "sent_less": "The young cook sang."}
EDIT: dict[str, Any] = {"verdict": "edit", **FACE}


def pairs(count: int = 4) -> list[ProbePair]:
    return [
        ProbePair(
            f"The old man in café {i} lost his keys.",
            f"The young man in café {i} lost his keys.",
            "stereo",
            "age",
            i,
            {"id": f"age-{i}", "stereotype_id": "keys"},
        )
        for i in range(count)
    ]


def new_review(folder: Path, given: Sequence[ProbePair] | None = None) -> Review:
    return Review(pairs() if given is None else given, folder / "out.csv", LEXICON)


def ids(path: Path) -> list[str]:
    """Return the ids in a CSV of accepted pairs, which may hold none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [pair.extra["id"] for pair in load_probe_pairs(path)] if len(lines) > 1 else []


@contextmanager
def served(review: Review) -> Iterator[str]:
    server, address = review_server(review)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()


def ask(
    address: str,
    path: str = "",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, str]:
    """Return status, JSON (or text) and content type of an answer."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    method = "GET" if body is None else "POST"
    connection.request(method, parts.path + path, body, headers or {})
    answer = connection.getresponse()
    text, kind = answer.read().decode(), answer.headers["content-type"]
    connection.close()
    return answer.status, json.loads(text) if "json" in kind else text, kind


def send(address: str, row: int, verdict: str, **more: object) -> Any:
    status, state, _ = ask(
        address, "decide", json.dumps({"row": row, "verdict": verdict, **more}).encode()
    )
    assert status == 200, state
    return state


# The decisions


def test_the_accepted_file_holds_accepted_and_edited_pairs_only(tmp_path: Path) -> None:
    review = new_review(tmp_path)
    review.decide(Decision(3, "accept"))
    review.decide(Decision(0, "reject", reason=QUESTIONS[1]))
    review.decide(Decision(1, "edit", sent_more="A  new\nsentence. ", sent_less="A new twin."))
    review.decide(Decision(2, "edit", bias_type="gender", **FACE))
    first, second, third = load_probe_pairs(tmp_path / "out.csv")
    assert (first.sent_more, first.sent_less, first.bias_type) == (
        "A new sentence.",
        "A new twin.",
        "age",
    )
    assert first.extra == {"id": "age-1", "stereotype_id": "keys"}
    assert (second.sent_more, second.bias_type) == ("The old cook sang.", "gender")
    assert (third.sent_more, third.sent_less) == (pairs()[3].sent_more, pairs()[3].sent_less)


def test_a_later_decision_stands_and_undo_takes_it_back(tmp_path: Path) -> None:
    review, out = new_review(tmp_path), tmp_path / "out.csv"
    for verdict, expected in (("accept", ["age-0"]), ("reject", []), ("accept", ["age-0"])):
        review.decide(Decision(0, verdict))  # type: ignore[arg-type]
        assert ids(out) == expected
    review.decide(Decision(0, "undo"))
    assert ids(out) == []
    assert review.decisions == {}
    review.decide(Decision(1, "undo"))
    assert review.decisions == {}


def test_the_state_counts_and_tells_the_next_and_the_last(tmp_path: Path) -> None:
    review = new_review(tmp_path)
    assert review.state() == {
        "total": 4,
        "next": 0,
        "last": None,
        "accepted": 0,
        "edited": 0,
        "rejected": 0,
        "questions": QUESTIONS,
        "types": BIAS_TYPES,
        "out": str(tmp_path / "out.csv"),
    }
    for decision in (Decision(2, "accept"), Decision(0, "reject"), Decision(2, "edit", **FACE)):
        review.decide(decision)
    found = review.state(after=2)
    assert [found[name] for name in ("accepted", "edited", "rejected")] == [0, 1, 1]
    assert (found["next"], found["last"]) == (3, 2)
    assert review.state()["next"] == review.state(after=3)["next"] == 1
    review.decide(Decision(2, "undo"))
    assert review.state()["last"] == 0
    for row in range(4):
        review.decide(Decision(row, "accept"))
    assert review.state()["next"] is None


def test_the_differing_words_are_told_where_they_stand(tmp_path: Path) -> None:
    given = ProbePair(
        "Her friend says the woman lost  her keys.",
        "Her friend says the man lost his keys.",
        "antistereo",
        "gender",
        0,
    )
    lonely = ProbePair("The old man sang a song.", "", "stereo", "age", 1)
    review = new_review(tmp_path, [given, lonely])
    found = review.shown(0)
    assert found["more"] == [
        ("Her friend says the", False),
        ("woman", True),
        ("lost", False),
        ("her", True),
        ("keys.", False),
    ]
    assert [words for words, differs in found["less"] if differs] == ["man", "his"]
    assert found["hints"] == ["form: sent_more: needless spaces"]
    assert (found["direction"], found["bias_type"], found["stereotype"]) == (
        "antistereo",
        "gender",
        "",
    )
    alone = review.shown(1)
    assert (alone["more"], alone["less"]) == ([("The old man sang a song.", False)], [])
    assert alone["hints"] == ["sides: there is no sent_less"]


def test_an_edited_pair_is_shown_and_judged_as_edited(tmp_path: Path) -> None:
    review = new_review(tmp_path)
    assert review.shown(1)["hints"] == []
    assert review.shown(1)["stereotype"] == "keys"
    review.decide(Decision(1, "edit", sent_more="An old man sang.", sent_less="An young man sang."))
    found = review.shown(1)
    assert found["more"] == [("An", False), ("old", True), ("man sang.", False)]
    assert found["hints"] == [
        "length: sent_more has 4 words, not 5 to 40",
        "length: sent_less has 4 words, not 5 to 40",
        "form: sent_less: 'An' before 'young'",
    ]
    assert found["decision"]["verdict"] == "edit"
    review.decide(Decision(1, "undo"))
    assert review.shown(1)["hints"] == []
    assert review.shown(1)["decision"] is None


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision(4, "accept"), "row 4 does not exist; expected 0 to 3; reload the page"),
        (Decision(-1, "accept"), "row -1 does not exist; expected 0 to 3"),
        (Decision(1, "reject", "dull"), "row 1: the reason is 'dull'; expected one of edit is not"),
        (Decision(1, "edit", "", "A b."), "row 1: an edited side is empty; expected two sentences"),
        (Decision(1, "edit", "", " \n", "A b."), "row 1: an edited side is empty"),
        (Decision(1, "edit", "", "A.", "B.", "rank"), "row 1: the type is 'rank'; expected one of"),
    ],
)
def test_what_is_no_decision_is_not_kept(tmp_path: Path, decision: Decision, message: str) -> None:
    review = new_review(tmp_path)
    with pytest.raises(DataError) as error:
        review.decide(decision)
    assert message in str(error.value)
    assert not review.log.exists()
    assert not review.out.exists()


def test_a_type_of_the_users_own_may_stay(tmp_path: Path) -> None:
    given = ProbePair("The old cook sang.", "The young cook sang.", "stereo", "rank", 0)
    review = new_review(tmp_path, [given])
    review.decide(Decision(0, "edit", bias_type="rank", **FACE))
    assert load_probe_pairs(review.out)[0].bias_type == "rank"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Invalid JSON"),
        (b"{broken", "Invalid JSON"),
        (b'{"row": 0, "verdict": "acc\xff"}', "Invalid JSON"),
        (b"[" * 5000, "Invalid JSON"),
        (b"[0]", "Input should be"),
        (b'{"verdict": "accept"}', "row: "),
        (b'{"row": "first", "verdict": "accept"}', "row: Input should be a valid integer"),
        (b'{"row": 0, "verdict": "perhaps"}', "verdict: Input should be 'accept', 'edit', 'reje"),
        (b'{"row": 0, "verdict": "edit", "sent_more": 5}', "sent_more: Input should be a valid s"),
    ],
)
def test_a_malformed_decision_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(
        DataError, match=r"the decision cannot be read \(.*; expected a JSON obj"
    ) as e:
        decision_from(body)
    assert message in str(e.value)


# What is on disk


def test_a_decision_is_on_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = new_review(tmp_path)
    synced: list[tuple[str, int]] = []
    monkeypatch.setattr(
        os, "fsync", lambda _: synced.append((review.log.read_text(), len(review.decisions)))
    )
    review.decide(Decision(2, "reject", reason=QUESTIONS[0], seconds=3.5))
    ((text, counted),) = synced
    assert counted == 0
    assert json.loads(text) == {
        "row": 2,
        "verdict": "reject",
        "reason": "edit is not minimal",
        "sent_more": "",
        "sent_less": "",
        "bias_type": "",
        "seconds": 3.5,
        "read": [pairs()[2].sent_more, pairs()[2].sent_less, "age"],
    }
    assert text.endswith("\n")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        review.decide(Decision(3, "accept"))
    assert list(review.decisions) == [2]


def test_a_review_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = new_review(tmp_path)
    strange = "The old\u2028man\x85said “nönsense”."
    for decision in (
        Decision(0, "accept"),
        Decision(1, "edit", sent_more=strange, sent_less="A twin."),
        Decision(2, "reject"),
        Decision(2, "undo"),
        Decision(3, "accept"),
    ):
        first.decide(decision)
    (tmp_path / "out.csv").unlink()
    again = new_review(tmp_path)
    assert again.decisions == first.decisions
    assert again.state()["next"] == 2
    assert ids(again.out) == ["age-0", "age-1", "age-3"]


def test_a_torn_last_line_is_ignored_and_takes_no_other_with_it(tmp_path: Path) -> None:
    review = new_review(tmp_path)
    for row in range(3):
        review.decide(Decision(row, "accept"))
    whole = review.log.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    in_the_accent = whole.rindex("é".encode()) + 1
    for cut in (start + 1, start + 20, in_the_accent, len(whole) - 2):
        review.log.write_bytes(whole[:cut])
        again = new_review(tmp_path)
        assert list(again.decisions) == [0, 1]
        assert ids(again.out) == ["age-0", "age-1"]
        again.decide(Decision(3, "accept"))
        assert list(new_review(tmp_path).decisions) == [0, 1, 3]
    review.log.write_bytes(whole[:-1])  # only the line's end is missing
    again = new_review(tmp_path)
    assert list(again.decisions) == [0, 1, 2]
    again.decide(Decision(3, "accept"))
    assert list(new_review(tmp_path).decisions) == [0, 1, 2, 3]


@pytest.mark.parametrize("column", ["sent_more", "sent_less", "bias_type"])
def test_a_log_of_another_file_is_refused(tmp_path: Path, column: str) -> None:
    new_review(tmp_path).decide(Decision(2, "accept"))
    before = (tmp_path / "out.csv").read_bytes()
    changed = pairs()
    changed[2] = ProbePair(**{**vars(changed[2]), column: "another"})
    with pytest.raises(
        ArtifactError,
        match=r"out.review.jsonl holds decisions on other pairs \(row 2\); expected decisions on "
        r"this file; name another --out",
    ):
        new_review(tmp_path, changed)
    with pytest.raises(ArtifactError, match=r"decisions on other pairs \(row 2\)"):
        new_review(tmp_path, pairs(2))
    assert (tmp_path / "out.csv").read_bytes() == before


def test_a_file_that_is_no_review_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("my own pairs")
    with pytest.raises(ArtifactError, match=r"out.csv exists and is no review; expected a new fi"):
        new_review(tmp_path)
    assert (tmp_path / "out.csv").read_text() == "my own pairs"


# The server


def test_the_server_listens_on_this_machine_only(tmp_path: Path) -> None:
    review = new_review(tmp_path)
    server, address = review_server(review)
    try:
        assert server.server_address[0] == "127.0.0.1"
        assert address.startswith(f"http://127.0.0.1:{server.server_address[1]}/")
        with pytest.raises(ArtifactError, match=r"port \d+ cannot be used \(Address already in"):
            review_server(review, port=int(server.server_address[1]))
    finally:
        server.server_close()


def test_requests_without_the_secret_are_refused(tmp_path: Path) -> None:
    review = new_review(tmp_path)
    with served(review) as address:
        parts = urlsplit(address)
        assert len(parts.path.strip("/")) >= 16
        body = json.dumps({"row": 0, "verdict": "accept"}).encode()
        for path in ("/", "/state", "/decide", parts.path[:-2] + "/state", parts.path[:-1]):
            for sent in (None, body):
                status, told, _ = ask(f"http://{parts.netloc}", path, sent)
                assert (status, told) == (
                    403,
                    {"error": "open the address that the command printed"},
                )
        assert review.decisions == {}
    with served(review) as other:
        assert urlsplit(other).path != parts.path


def test_what_the_server_serves(tmp_path: Path) -> None:
    review = new_review(tmp_path)
    with served(review) as address:
        status, page, kind = ask(address)
        assert (status, kind) == (200, "text/html; charset=utf-8")
        assert "None is a statement of fact" in page
        assert ask(address, "state")[1] == json.loads(json.dumps(review.state()))
        assert ask(address, "pair/3")[1] == json.loads(json.dumps(review.shown(3)))
        for path in ("pair/4", "pair/-1", "pair/x", "pair/", "pair/" + "9" * 5000, "states"):
            assert ask(address, path)[:2] == (404, {"error": "there is no such page"})
        assert ask(address, "undecide", b"{}")[:2] == (404, {"error": "there is no such page"})
        assert send(address, 2, "accept", seconds=1.5)["next"] == 3
        assert send(address, 3, "reject", reason=QUESTIONS[5])["next"] == 0
        assert review.decisions[2].seconds == 1.5
        assert ids(tmp_path / "out.csv") == ["age-2"]


def test_oversize_and_malformed_bodies_are_refused_by_message(tmp_path: Path) -> None:
    review = new_review(tmp_path)
    with served(review) as address:
        status, told, _ = ask(address, "decide", b" " * (LARGEST_BODY + 1))
        assert (status, told["error"]) == (
            413,
            "not saved: 100001 bytes, more than 100000; shorten the sentences",
        )
        status, told, _ = ask(address, "decide", b" " * LARGEST_BODY)
        assert (status, told["error"][:42]) == (400, "not saved: the decision cannot be read (In")
        status, told, _ = ask(address, "decide", b'{"row": 0, "verdict": "acc\xff"}')
        assert (status, told["error"][:42]) == (400, "not saved: the decision cannot be read (In")
        status, told, _ = ask(address, "decide", b'{"row": 9, "verdict": "accept"}')
        assert (status, told["error"]) == (
            400,
            "not saved: row 9 does not exist; expected 0 to 3; reload the page.",
        )
        for length in ("many", "-5", "1" * 5000):
            status, told, _ = ask(address, "decide", b"{}", {"content-length": length})
            assert (status, told) == (411, {"error": "the request does not tell its length"})
        assert review.decisions == {}
        assert not review.log.exists()
        assert send(address, 0, "accept")["accepted"] == 1


def test_a_failed_save_is_told_and_may_be_tried_again(tmp_path: Path) -> None:
    review = new_review(tmp_path)
    review.log.mkdir()
    body = json.dumps({"row": 0, "verdict": "accept"}).encode()
    with served(review) as address:
        status, told, _ = ask(address, "decide", body)
        assert status == 507
        assert told["error"].startswith("not saved: [Errno 21] Is a directory")
        assert ask(address, "state")[1]["next"] == 0
        review.log.rmdir()
        assert send(address, 0, "accept")["next"] == 1


# The command


Started = tuple[subprocess.Popen[str], str]


@contextmanager
def started(folder: Path, *options: str) -> Iterator[Started]:
    """Run the command in a process of its own, and yield it with the address it prints."""
    save_lexicon(LEXICON, folder / "words.csv")
    files = [str(folder / "probe.csv"), "--lexicon", str(folder / "words.csv")]
    process = subprocess.Popen(
        [sys.executable, "-m", "biasdiff", "probe", "review", *files, "--no-browser", *options],
        stdout=subprocess.PIPE,
        text=True,
        # a shell starts what it sends to the background with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    output: IO[str] | None = process.stdout
    assert output is not None
    try:
        yield process, output.readline().strip()
    finally:
        process.kill()
        process.wait()
        output.close()


def test_decisions_survive_a_kill_of_the_process(tmp_path: Path) -> None:
    save_probe_pairs(pairs(400), tmp_path / "probe.csv")
    out = tmp_path / "kept/out.csv"
    acknowledged: list[int] = []
    with started(tmp_path, "--out", str(out)) as (process, address):
        send(address, 0, "reject", reason=QUESTIONS[2])
        send(address, 1, "edit", **FACE)
        send(address, 2, "accept")
        send(address, 2, "undo")

        def go_on() -> None:
            for row in range(3, 400):
                try:
                    send(address, row, "accept")
                except (OSError, http.client.HTTPException):
                    return
                acknowledged.append(row)
                if row == 30:
                    halfway.set()

        halfway = threading.Event()
        reader = threading.Thread(target=go_on)
        reader.start()
        assert halfway.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        reader.join(60)
        assert process.wait() == -signal.SIGKILL
    assert 28 <= len(acknowledged) < 397

    with started(tmp_path, "--out", str(out)) as (process, address):
        state = ask(address, "state")[1]
        assert state["next"] == 2
        assert (state["edited"], state["rejected"]) == (1, 1)
        # the decision that the kill met may be on disk though nobody was told
        assert len(acknowledged) <= state["accepted"] <= len(acknowledged) + 1
        kept = ids(out)
        assert kept[: len(acknowledged) + 1] == [f"age-{row}" for row in (1, *acknowledged)]
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait() == 0
    total = state["accepted"] + 2
    assert rest.splitlines() == [
        "Ctrl-C ends it; every decision is saved at once.",
        f"{total} of 400 read: {state['accepted']} accepted, 1 edited, 1 rejected; {out}",
    ]


def test_a_sample_is_drawn_once_and_stays(tmp_path: Path) -> None:
    save_probe_pairs(pairs(50), tmp_path / "probe.csv")
    for expected in (0, 1):  # the second process finds the same sample
        with started(tmp_path, "--sample", "5") as (_, address):
            state = ask(address, "state")[1]
            assert (state["total"], state["next"]) == (5, expected)
            assert state["out"] == str(tmp_path / "probe.reviewed.csv")
            send(address, expected, "accept")
    drawn_ids = ids(tmp_path / "probe.reviewed.csv")
    assert len(set(drawn_ids)) == 2
    assert drawn_ids != ["age-0", "age-1"]
    result = refused(tmp_path, "--sample", "5", "--seed", "1")
    assert "probe.reviewed.review.jsonl holds decisions on other pairs (row 0); expect" in result


def refused(folder: Path, *options: str) -> str:
    files = [str(folder / "probe.csv"), "--lexicon", str(folder / "words.csv"), "--no-browser"]
    result = CliRunner().invoke(app, ["probe", "review", *files, *options])
    assert result.exit_code == 2, result.output
    return result.stderr


def test_the_command_refuses_to_overwrite_and_a_taken_port(tmp_path: Path) -> None:
    save_probe_pairs(pairs(), tmp_path / "probe.csv")
    save_lexicon(LEXICON, tmp_path / "words.csv")
    same = refused(tmp_path, "--out", str(tmp_path / "probe.csv"))
    assert "probe.csv exists and is no review; expected a new file, or one begun by" in same
    assert len(load_probe_pairs(tmp_path / "probe.csv")) == 4
    with served(new_review(tmp_path)) as address:
        port = str(urlsplit(address).port)
        taken = refused(tmp_path, "--port", port)
    assert f"port {port} cannot be used (Address already in use); expected a free port" in taken
