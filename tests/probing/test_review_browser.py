"""The review page in a real browser, driven by keyboard only."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from biasdiff.data.probe import ProbePair, load_probe_pairs
from biasdiff.probing.lexicon import GroupWord, Lexicon
from biasdiff.probing.review import QUESTIONS, Decision, Review, review_server
from report.test_browser import CHROMEDRIVER, CHROMIUM, FLAGS, MISSING

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not found: apt-get install chromium chromium-driver",
    ),
]

LEXICON = Lexicon([GroupWord("age", "old", "young"), GroupWord("gender", "woman", "man")])
PAIRS = [
    ProbePair(
        "Her friend says that the woman lost her keys.",
        "Her friend says that the man lost his keys.",
        "stereo",
        "gender",
        0,
        {"stereotype_id": "gender-keys"},
    ),
    ProbePair("The old cook burnt a soup.", "The young cook burnt an soup.", "stereo", "age", 1),
    ProbePair("An old man sang too loud.", "A young man sang too loud.", "antistereo", "age", 2),
    ProbePair("Most old cats sleep all day.", "Most young cats sleep all day.", "stereo", "age", 3),
]
LEFT, RIGHT, END = "\ue012", "\ue014", "\ue010"
CONTROL, ENTER, ESCAPE, TAB, BACKSPACE = "\ue009", "\ue007", "\ue00c", "\ue004", "\ue003"


class Page:
    """A review opened in the browser."""

    def __init__(self, driver: Any, review: Review) -> None:
        self.driver, self.review = driver, review
        self.server: ThreadingHTTPServer | None = None
        self.address = ""

    def open(self, width: int = 1280) -> None:
        self.server, self.address = review_server(self.review)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(self.address)

    def close(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def press_with_control(self, key: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).key_down(CONTROL).send_keys(key).key_up(CONTROL).perform()

    def save(self) -> None:
        self.press_with_control(ENTER)

    def text(self, name: str) -> str:
        return str(self.driver.find_element("id", name).text)

    def value(self, name: str) -> str:
        return str(self.driver.find_element("id", name).get_property("value"))

    def wait(self, name: str, expected: str) -> None:
        """Wait until a part of the page says something."""
        from selenium.webdriver.support.ui import WebDriverWait

        found: list[str] = []

        def says(_: Any) -> bool:
            found[:] = [self.text(name)]
            return found == [expected]

        WebDriverWait(self.driver, 20, poll_frequency=0.02).until(says, f"{name} is not {expected}")

    def at(self, number: int) -> None:
        self.wait("place", f"Pair {number} of {len(self.review.pairs)}")

    def marked(self, name: str) -> list[str]:
        return [mark.text for mark in self.driver.find_elements("css selector", f"#{name} mark")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    profile = tmp_path_factory.mktemp("chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Naming the driver keeps Selenium from looking for one to download.
    started = webdriver.Chrome(options=options, service=Service(str(CHROMEDRIVER)))
    yield started
    started.quit()
    shutil.rmtree(profile, ignore_errors=True)


Opened = Callable[..., Page]


@pytest.fixture
def opened(driver: Any, tmp_path: Path) -> Iterator[Opened]:
    """Return a function that opens a review, by default of `PAIRS`, in the browser."""
    pages: list[Page] = []

    def make(pairs: list[ProbePair] | None = None, *, width: int = 1280) -> Page:
        review = Review(PAIRS if pairs is None else pairs, tmp_path / "out.csv", LEXICON)
        pages.append(Page(driver, review))
        pages[-1].open(width)
        return pages[-1]

    yield make
    for page in pages:
        page.close()


def test_a_sitting_by_keyboard(opened: Opened) -> None:
    page = opened()
    page.at(1)
    assert page.text("counts") == "0 accepted, 0 edited, 0 rejected"
    page.press("a")
    page.at(2)
    assert page.text("said") == "Pair 1 accepted."
    assert page.text("hints") == "form: sent_less: 'an' before 'soup'"

    page.press("e")
    assert page.value("edit-less") == "The young cook burnt an soup."
    page.press("My ")  # the caret stands before the first word that differs
    assert page.value("edit-more") == "The My old cook burnt a soup."
    page.press(ESCAPE)
    page.wait("more", "The old cook burnt a soup.")
    page.press("e", TAB)
    page.press(END, *BACKSPACE * 8, "a soup.\n")
    page.save()
    page.at(3)
    assert page.text("said") == "Pair 2 edited."
    edit = page.review.decisions[1]
    assert (edit.sent_more, edit.sent_less, edit.bias_type) == (
        "The old cook burnt a soup.",
        "The young cook burnt a soup.",
        "age",
    )

    page.press("3")
    page.at(4)
    assert page.text("said") == "Pair 3 rejected: no known stereotype."
    page.press("u")
    page.at(3)
    assert page.text("said") == "Pair 3 is undecided again."
    assert sorted(page.review.decisions) == [0, 1]
    page.press("5")
    page.at(4)

    page.press(LEFT)
    page.at(3)
    assert page.text("said") == "Decided: rejected, too harsh."
    page.press(LEFT)
    page.at(2)
    page.wait("less", "The young cook burnt a soup.")
    assert page.text("said") == "Decided: edited."
    assert page.text("hints") == ""
    page.press(RIGHT)
    page.at(3)
    page.press(RIGHT)
    page.at(4)

    page.press("R")  # without a reason, and with the capitals on
    page.wait("place", "All 4 pairs are decided.")
    assert page.text("counts") == "1 accepted, 1 edited, 2 rejected"
    assert f"The accepted pairs are in {page.review.out}." in page.text("said")
    kept = load_probe_pairs(page.review.out)
    assert [pair.sent_less for pair in kept] == [PAIRS[0].sent_less, edit.sent_less]
    assert [page.review.decisions[row].reason for row in (2, 3)] == [QUESTIONS[4], ""]

    page.press("a", "e", "1", RIGHT)  # nothing is left to decide
    page.at(4)
    page.press("u")
    page.wait("said", "Pair 4 is undecided again.")
    assert sorted(page.review.decisions) == [0, 1, 2]


def test_undo_takes_back_the_last_decision_wherever_it_was(opened: Opened) -> None:
    page = opened()
    for number in (1, 2):
        page.at(number)
        page.press("a")
    page.at(3)
    page.press(LEFT)
    page.at(2)
    page.press(LEFT)
    page.at(1)
    page.press("1")  # decided anew; the page goes on where nothing is decided
    page.at(3)
    page.press("u")
    page.at(1)
    assert list(page.review.decisions) == [1]
    page.press("u")
    page.at(2)
    page.press("u")
    page.wait("error", "There is no decision to undo.")
    assert page.review.decisions == {}


def test_undo_on_a_decided_pair_takes_back_that_one(opened: Opened) -> None:
    page = opened()
    for number in (1, 2, 3):
        page.at(number)
        page.press("a")
    for number in (4, 3, 2):
        page.at(number)
        page.press(LEFT)
    page.at(1)
    page.press("u")
    page.wait("said", "Pair 1 is undecided again.")
    assert list(page.review.decisions) == [1, 2]


def test_the_decision_is_on_disk_before_the_next_pair_shows(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[int, list[int]] = {}
    shown = Review.shown

    def spied(review: Review, row: int) -> dict[str, Any]:
        lines = review.log.read_text().splitlines() if review.log.exists() else []
        asked[row] = [json.loads(line)["row"] for line in lines]
        return shown(review, row)

    monkeypatch.setattr(Review, "shown", spied)
    page = opened()
    for number, key in enumerate("a2r", 1):
        page.at(number)
        page.press(key)
    page.at(4)
    assert asked == {0: [], 1: [0], 2: [0, 1], 3: [0, 1, 2]}


def test_after_a_restart_the_page_goes_on_at_the_first_undecided_pair(opened: Opened) -> None:
    first = opened()
    first.at(1)
    first.press("a")
    first.at(2)
    first.press(RIGHT)
    first.at(3)
    first.press("4")
    first.at(4)
    first.close()
    again = opened()
    assert again.address != first.address
    again.at(2)
    assert again.text("counts") == "1 accepted, 0 edited, 1 rejected"
    again.press("a")
    again.at(4)
    again.press("a")
    again.wait("place", "All 4 pairs are decided.")
    assert [pair.row for pair in again.review.accepted()] == [0, 1, 3]


def test_the_differing_words_are_marked_where_they_stand(opened: Opened) -> None:
    page = opened()
    page.at(1)
    assert (page.marked("more"), page.marked("less")) == (["woman", "her"], ["man", "his"])
    assert page.text("more") == PAIRS[0].sent_more  # its first word, her too, is not marked
    assert (page.text("type"), page.text("claim")) == ("gender", "gender-keys")
    page.press(RIGHT)
    page.at(2)
    assert (page.marked("more"), page.marked("less")) == (["old", "a"], ["young", "an"])
    page.press(RIGHT)
    page.at(3)
    assert (page.marked("more"), page.marked("less")) == (["An old"], ["A young"])
    assert page.text("type") == "age, antistereo"


def test_a_failed_save_shows_an_error_and_the_pair_stays(opened: Opened) -> None:
    page = opened()
    page.at(1)
    page.review.log.mkdir()
    page.press("a")
    page.wait("error", f"not saved: [Errno 21] Is a directory: '{page.review.log}'")
    page.at(1)
    assert page.text("counts") == "0 accepted, 0 edited, 0 rejected"
    page.review.log.rmdir()
    page.press("a")
    page.at(2)
    assert page.text("error") == ""

    page.press("e", TAB, "Truly ")
    page.review.log.rename(page.review.log.with_suffix(".aside"))
    page.review.log.mkdir()
    page.save()
    page.wait("error", f"not saved: [Errno 21] Is a directory: '{page.review.log}'")
    assert "Truly" in page.value("edit-less")
    page.close()
    page.save()
    unreachable = "Not saved: the server cannot be reached. Give the same command again and open"
    page.wait("error", f"{unreachable} the address it prints.")
    assert "Truly" in page.value("edit-less")
    assert sorted(page.review.decisions) == [0]


def test_an_edit_that_empties_a_side_is_refused_and_kept_open(opened: Opened) -> None:
    page = opened()
    page.at(1)
    page.press("e")
    page.press_with_control("a")
    page.press(BACKSPACE)
    page.save()
    message = "an edited side is empty; expected two sentences; write both, or reject the pair."
    page.wait("error", f"not saved: row 0: {message}")
    page.press("A woman sang.")
    page.save()
    page.at(2)
    hint = "Pair 1 edited. It still has: length: sent_more has 3 words, not 5 to 40; edit: 9 of 3"
    assert page.text("said").startswith(hint)
    assert page.review.decisions[0].sent_more == "A woman sang."


def test_the_type_can_be_changed_and_one_of_the_users_own_stays(opened: Opened) -> None:
    odd = ProbePair("The old cook sang a song.", "The young cook sang a song.", "stereo", "rank", 0)
    page = opened([odd, *PAIRS[1:]])
    page.at(1)
    page.press("e")
    page.save()
    page.at(2)
    page.press("e", TAB, TAB, "gen")
    page.save()
    page.at(3)
    assert [page.review.decisions[row].bias_type for row in (0, 1)] == ["rank", "gender"]


def test_a_key_held_down_decides_once(opened: Opened) -> None:
    page = opened()
    page.at(1)
    for repeated in (False, True, True, True):
        event = {"type": "keyDown", "key": "a", "text": "a", "autoRepeat": repeated}
        page.driver.execute_cdp_cmd("Input.dispatchKeyEvent", event)
        page.at(2)
    page.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyUp", "key": "a"})
    page.press("a")
    page.at(3)
    assert sorted(page.review.decisions) == [0, 1]


def test_the_time_that_is_left(opened: Opened) -> None:
    many = [
        ProbePair(f"Old man {i} sang a song.", f"Young man {i} sang a song.", "stereo", "age", i)
        for i in range(500)
    ]
    page = opened(many)
    for number in range(1, 6):
        page.at(number)
        page.driver.execute_script("since -= 10000")
        page.press("a")
    page.at(6)
    told = r"5 accepted, 0 edited, 0 rejected, 495 left \((\d+) min at (\d+) s a pair\)"
    found = re.fullmatch(told, page.text("counts"))
    assert found is not None
    minutes, seconds = map(int, found.groups())
    assert 10 <= seconds <= 20  # the browser itself takes a little time
    assert minutes == pytest.approx(495 * seconds / 60, abs=5)
    assert all(10 <= decision.seconds < 20 for decision in page.review.decisions.values())


def test_text_of_a_pair_does_not_run(opened: Opened) -> None:
    attack = "</script><script>attacked = 1</script><img src=x onerror='attacked = 1'> sing."
    given = ProbePair(f"Old {attack}", f"Young {attack}", "stereo", "age", 0, {})
    page = opened([given])
    page.at(1)
    assert page.text("more") == given.sent_more
    page.press("e")
    assert page.value("edit-less") == given.sent_less
    page.save()
    page.wait("place", "All 1 pairs are decided.")
    assert page.driver.execute_script("return window.attacked === undefined")


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_and_asks_this_server_only(opened: Opened, width: int) -> None:
    long = " ".join(["really"] * 36)
    page = opened(
        [
            ProbePair(f"An old man, {long}.", f"A young man, {long}.", "stereo", "age", 0),
            *PAIRS[1:],
        ],
        width=width,
    )
    page.at(1)
    measure = """
        const root = document.documentElement;
        const bar = document.querySelector('footer').getBoundingClientRect();
        return [root.scrollWidth <= root.clientWidth, bar.top >= 0 && bar.bottom <= innerHeight];
    """
    assert page.driver.execute_script(measure) == [True, True]
    page.press("e")
    assert page.driver.execute_script(measure) == [True, True]
    page.press(ESCAPE, "a")
    page.at(2)
    assert [line for line in page.driver.get_log("browser") if line["level"] != "INFO"] == []
    events = [json.loads(line["message"])["message"] for line in page.driver.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert f"{page.address}decide" in urls
    assert [url for url in urls if not url.startswith((page.address, "data:"))] == []


def test_pairs_decided_elsewhere_are_not_asked_again(opened: Opened) -> None:
    page = opened()
    page.at(1)
    page.review.decide(Decision(1, "accept"))
    page.press("a")
    page.at(3)
