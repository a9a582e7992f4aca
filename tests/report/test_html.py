from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from biasdiff.reporting.differences import DECREASED, INCREASED, NO_INTERVAL, NOISE, verdict
from biasdiff.reporting.html import render_html, script_json, script_source
from biasdiff.reporting.measures import show, show_interval
from biasdiff.reporting.summary import overview, statements
from report.results_example import example_results, metric

TWELVE_TYPES = tuple(f"type-{i}" for i in range(12))
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def figures_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures-json">(.*?)</script>', page)
    assert found is not None
    figures: dict[str, Any] = json.loads(found.group(1))
    return figures


def without_plotly(page: str) -> str:
    """Return the page without the inlined plotly.js."""
    return re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL)


def text_of(page: str) -> str:
    visible = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", visible))


@pytest.fixture(scope="module")
def page() -> str:
    return render_html(example_results())


def test_every_section_and_figure_is_there(page: str) -> None:
    ids = ("summary", "models", "differences", "detection", "examples", "meaning", "settings")
    for section in ids:
        assert f'<section id="{section}"' in page
    figures = figures_of(page)
    assert list(figures) == [
        "figure-margin",
        "figure-preference",
        "figure-differences",
        "figure-margin-by-type",
        "figure-scores",
        "figure-coverage",
        "figure-precision",
    ]
    for name in figures:
        assert f'<div class="plot" id="{name}"' in page


def test_the_page_warns_of_its_content_before_it_shows_any(page: str) -> None:
    assert page.index("Content warning") < page.index('<section id="summary">')


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    rest = without_plotly(page)
    assert len(rest) < 200_000
    assert page.count("* plotly.js v") == 1
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", rest)
    assert "http://" not in rest
    assert "https://" not in rest
    assert "@import" not in rest
    assert "default-src 'none'" in rest


def test_texts_of_the_data_cannot_become_markup() -> None:
    results = example_results(bias_types=("age", ATTACK), methods=(ATTACK,))
    results |= {"name": ATTACK, "model": ATTACK}
    results["examples"]["most"][0] |= {"text": ATTACK, "bias_type": ATTACK}
    results["settings"][ATTACK] = ATTACK
    results["versions"][ATTACK] = ATTACK
    results["timings"]["stages"][ATTACK] = 1.0
    results["detection"][ATTACK] = results["detection"]["less"]
    results["curves"][ATTACK] = results["curves"]["less"]
    page = render_html(results)
    assert "<script>alert" not in page
    assert "<img" not in without_plotly(page)
    assert page.count("</script>") == 3
    assert "&lt;script&gt;alert(1)" in page
    # plotly draws a subset of HTML in its labels, so they are escaped once more.
    labels = figures_of(page)["figure-margin-by-type"]["layout"]["yaxis"]["ticktext"]
    assert labels[1].startswith("&lt;/script&gt;")


def test_json_cannot_end_its_script_element() -> None:
    value = {"a": ["</script>", "<!--", "&amp;"]}
    assert "<" not in script_json(value)
    assert json.loads(script_json(value)) == value


def test_javascript_cannot_end_its_script_element() -> None:
    assert script_source('x = "</script>"') == r'x = "<\/script>"'


@pytest.mark.parametrize(
    ("interval", "neutral", "expected"),
    [
        ([0.01, 2.0], 0.0, INCREASED),
        ([-2.0, -0.01], 0.0, DECREASED),
        ([-0.01, 2.0], 0.0, NOISE),
        ([0.0, 2.0], 0.0, NOISE),
        ([0.0, 0.0], 0.0, NOISE),
        ([0.9, 1.1], 1.0, NOISE),
        ([1.01, 1.1], 1.0, INCREASED),
        ([0.9, 0.99], 1.0, DECREASED),
        ([None, None], 0.0, NO_INTERVAL),
        ([None, 2.0], 0.0, NO_INTERVAL),
        (None, 0.0, NO_INTERVAL),
    ],
)
def test_only_the_interval_decides_the_verdict(
    interval: list[float | None] | None, neutral: float, expected: str
) -> None:
    record = metric(5.0, None)
    if interval is not None:
        record["interval_95"] = interval
    assert verdict(record, neutral) == expected


def test_summary_says_what_the_intervals_allow() -> None:
    said = statements(example_results())
    verdicts = {name: [s.verdict for s in rows] for name, rows in said.items()}
    assert verdicts["biased compared with base"] == [INCREASED, INCREASED, INCREASED]
    assert verdicts["retrain compared with biased"] == [DECREASED, DECREASED, NOISE]
    assert verdicts["retrain compared with base"] == [NOISE, NOISE, INCREASED]
    assert said["biased compared with base"][0].sentence == (
        "+1.890 nats (95 % interval +1.674 to +2.106), from 0.420 to 2.310 nats."
    )
    assert "an interval that includes 1" in said["retrain compared with biased"][2].sentence


def test_a_large_difference_within_noise_is_not_called_a_change() -> None:
    results = example_results(methods=())
    wide = metric(9.0, 8.0)
    results["differences"]["biased - base"]["stereotype_preference"]["margin"] = wide
    margin = statements(results)["biased compared with base"][0]
    assert margin.verdict == NOISE


def test_no_change_is_called_an_improvement(page: str) -> None:
    assert not re.search("improve|better|worse|success", text_of(page), flags=re.IGNORECASE)


def test_overview_holds_the_selection_against_a_random_one() -> None:
    text = " ".join(overview(example_results()))
    assert "120 known biased" in text
    assert "holds 93.3 % (95 % interval 88.2 to 98.4) of all biased examples" in text
    assert "a random one of that size would hold 35.0 %" in text
    assert "Mitigation was run with: retrain, npo." in text


def test_unknown_truth_is_said_and_not_shown_as_zero() -> None:
    page = render_html(example_results(truth=False))
    assert "detection cannot be measured" in text_of(page)
    assert "which of them are biased is not known" in page
    assert "figure-coverage" not in page
    assert "<td>unknown</td>" in page
    assert "all examples (400)" in json.dumps(figures_of(page)["figure-scores"])


@pytest.mark.parametrize("methods", [(), ("retrain",)])
def test_few_or_no_mitigation_methods(methods: tuple[str, ...]) -> None:
    page = render_html(example_results(methods=methods))
    said = "Mitigation was run with: retrain." if methods else "No mitigation was run."
    assert said in page
    labels = figures_of(page)["figure-margin"]["layout"]["yaxis"]["ticktext"]
    assert labels == ["base", "biased", *methods]


def test_a_run_without_comparisons() -> None:
    results = example_results()
    results["differences"] = {}
    page = render_html(results)
    assert "No two models were compared" in page
    assert "figure-differences" not in page


def test_missing_values_are_na_and_have_no_dot() -> None:
    results = example_results(methods=())
    gone = {"value": None, "standard_error": None, "interval_95": [None, None]}
    results["models"]["base"]["stereotype_preference"]["metric"] |= gone
    del results["models"]["biased"]["stereotype_preference"]["metric"]["interval_95"]
    results["differences"]["biased - base"]["stereotype_preference"]["metric"] |= gone
    results["score_distribution"]["all examples"] = [0.1, None]
    results["examples"]["most"][0]["score"] = None
    del results["data"]["truncated"]
    page = render_html(results)
    assert '<td class="num missing"><span class="value">n/a</span></td>' in page
    trace = figures_of(page)["figure-preference"]["data"][0]
    assert trace["x"] == [None, 83.6]
    assert trace["error_x"]["array"] == [None, None]
    preference = statements(results)["biased compared with base"][1]
    assert preference.verdict == NO_INTERVAL
    assert preference.sentence == "from n/a to 83.6 %; difference n/a."


def test_twelve_bias_types_and_a_second_benchmark() -> None:
    page = render_html(example_results(bias_types=TWELVE_TYPES, crows_pairs=True))
    figure = figures_of(page)["figure-margin-by-type"]
    assert len(figure["layout"]["yaxis"]["ticktext"]) == 12
    assert "Results on CrowS-Pairs" in page
    assert [trace["name"] for trace in figures_of(page)["figure-margin"]["data"]] == [
        "evaluation pairs",
        "CrowS-Pairs",
    ]


def test_the_selected_fraction_is_marked(page: str) -> None:
    layout = figures_of(page)["figure-coverage"]["layout"]
    assert layout["shapes"][0]["x0"] == pytest.approx(35.0)
    assert layout["annotations"][0]["text"] == "selected: 35.0 %"


def test_long_texts_are_cut_and_say_so() -> None:
    results = example_results()
    results["examples"]["most"][0]["text"] = "a" * 700
    page = render_html(results)
    assert "(100 more characters)" in page
    assert "a" * 601 not in without_plotly(page)


def test_settings_versions_and_timings(page: str) -> None:
    text = text_of(page)
    assert "warmup.lora.rank 8" in text
    assert "transformers 5.24.0" in text
    assert "attribution 5 min 13 s" in text
    assert "peak memory 2.25 GiB" in text


def test_the_same_results_give_the_same_bytes_and_stay_unchanged(page: str) -> None:
    results = example_results()
    before = copy.deepcopy(results)
    assert render_html(results) == page
    assert results == before


def test_numbers() -> None:
    assert show(None, 1) == show(float("nan"), 1) == "n/a"
    assert show(-0.0004, 2, signed=True) == "+0.00"
    assert show(12_345_678.0, 2) == "1.235e+07"
    assert show_interval(metric(None, None), 1) == "n/a"


def test_the_report_never_imports_torch() -> None:
    code = (
        "import sys, biasdiff.reporting.html, biasdiff.reporting.terminal;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'plotly')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokens_of_explained_examples_are_shown_and_escaped() -> None:
    page = render_html(example_results())
    assert '<span class="token up" style="--strength: 60%" title="0.3000">&lt;b&gt;' in page
    assert '<span class="token down" style="--strength: 20%"' in page
    assert "of it first moment 0.05000" in page
    assert '<section id="tokens">' not in render_html(example_results() | {"explanations": []})
