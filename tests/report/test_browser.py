"""The written report in a real browser: what no test of strings can see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from biasdiff.reporting.html import render_html
from report.results_example import example_results

CHROMIUM, CHROMEDRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
MISSING = [str(path) for path in (CHROMIUM, CHROMEDRIVER) if not path.exists()]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not found: apt-get install chromium chromium-driver",
    ),
]

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# Per figure: traces asked for, traces drawn with a size, and the size of the drawing.
MEASURE_FIGURES = """
return [...document.querySelectorAll('.plot')].map((plot) => {
  const sized = (element) => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.height > 0;
  };
  const drawn = [...plot.querySelectorAll('.scatterlayer .trace, .boxlayer .trace')];
  const box = plot.querySelector('svg.main-svg').getBoundingClientRect();
  return {
    id: plot.id,
    asked: figures[plot.id].data.length,
    drawn: drawn.filter(sized).length,
    width: box.width,
    height: box.height,
  };
});
"""


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


@pytest.fixture(scope="module", params=["usual", "everything", "little"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = {
        "usual": lambda: example_results(),
        "everything": lambda: example_results(
            bias_types=tuple(f"socioeconomic-kind-{i}" for i in range(12)), crows_pairs=True
        ),
        "little": lambda: example_results(methods=(), truth=False),
    }[request.param]()
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_html(results), encoding="utf-8")
    return path


def open_report(driver: Any, report: Path, width: int) -> None:
    """Open the report in a viewport of ``width`` CSS pixels and wait until it is drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    # A window cannot be made as narrow as a telephone; the emulated viewport can.
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get_log("browser")
    driver.get_log("performance")
    driver.get(report.as_uri())
    WebDriverWait(driver, 60).until(
        lambda d: d.execute_script("return document.body.dataset.figures") == "drawn"
    )


@pytest.mark.parametrize("width", [1280, 420])
def test_report_is_drawn_whole_and_alone(driver: Any, report: Path, width: int) -> None:
    open_report(driver, report, width)

    figures = driver.execute_script(MEASURE_FIGURES)
    assert len(figures) >= 5
    for figure in figures:
        assert figure["asked"] > 0, figure
        assert figure["drawn"] == figure["asked"], figure
        assert 250 < figure["width"] <= width, figure
        assert figure["height"] > 80, figure

    page, window = driver.execute_script(
        "document.querySelectorAll('details').forEach((part) => { part.open = true; });"
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert page <= window

    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requested = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert report.as_uri() in requested
    assert [url for url in requested if not url.startswith(("file:", "data:", "blob:"))] == []


def test_text_from_the_data_does_not_run(driver: Any, tmp_path: Path) -> None:
    attack = "</script><script>window.attacked = 1</script><img src=x onerror='attacked = 1'>"
    results = example_results(bias_types=("age", attack))
    results["name"] = attack
    results["examples"]["most"][0]["text"] = attack
    path = tmp_path / "report.html"
    path.write_text(render_html(results), encoding="utf-8")
    open_report(driver, path, 1280)
    assert driver.execute_script("return window.attacked === undefined")
    assert attack in driver.find_element("css selector", "#examples").text
    # plotly reads HTML in labels; the escaped label shows as it was written.
    labels = driver.execute_script(
        "return document.querySelector('#figure-margin-by-type .yaxislayer-above').textContent"
    )
    assert attack in labels
