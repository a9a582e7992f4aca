from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from biasdiff.reporting.terminal import print_evaluation, print_report
from report.results_example import example_results


def printed(results: dict[str, Any], *, width: int = 80) -> str:
    stream = io.StringIO()
    print_report(results, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("crows_pairs", [False, True])
def test_fits_eighty_columns_without_folding_or_cutting(crows_pairs: bool) -> None:
    text = printed(example_results(crows_pairs=crows_pairs))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    assert re.search(r"^biased +83\.6 +79\.1 to 88\.1 +2\.310 ± 0\.140 +22\.90$", text, re.M)
    assert re.search(r"^  Margin +\+1\.890 +\+1\.674 to \+2\.106 +increased *$", text, re.M)
    noise = r"^  Perplexity ratio +0\.991 +0\.968 to 1\.015 +not distinguishable from noise *$"
    assert len(re.findall(noise, text, re.M)) == 1
    assert re.search(r"^contrast \(used\) +93\.3 +80\.0 +0\.916 +0\.818$", text, re.M)
    assert re.search(r"^ +88\.2 to 98\.4 +73\.3 to 86\.6 +0\.883 to 0\.950", text, re.M)


def test_long_names_fold_and_numbers_stay_whole() -> None:
    name = "a-very-long-name-of-a-mitigation-method-that-somebody-made-up"
    text = printed(example_results(methods=(name,)))
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "52.3 to 61.3  0.420 ± 0.140       21.40" in text
    assert "83.6   79.1 to 88.1  2.310 ± 0.140       22.90" in text
    assert name in re.sub(r"\s", "", text)


def test_missing_values_and_unknown_truth() -> None:
    results = example_results(methods=(), truth=False)
    gone = {"value": None, "standard_error": None, "interval_95": [None, None]}
    results["models"]["base"]["stereotype_preference"]["metric"] |= gone
    results["differences"]["biased - base"]["stereotype_preference"]["metric"] |= gone
    text = printed(results)
    assert re.search(r"^base +n/a +n/a +0\.420 ± 0\.140 +21\.40$", text, re.M)
    assert re.search(r"^  Preference +n/a +n/a +no interval, no verdict *$", text, re.M)
    assert "Detection: n/a" in text


def test_names_are_not_read_as_console_markup() -> None:
    assert "[red]npo[/red]" in printed(example_results(methods=("[red]npo[/red]",)))


def test_one_evaluation_is_listed_with_its_counts() -> None:
    metrics = example_results(crows_pairs=True)["models"]["biased"]
    stream = io.StringIO()
    record = {
        "model": "smollm2-135m",
        "adapter": "runs/[a]/warmup",
        "metrics": metrics,
        "settings": {"scoring": "sum: of all"},
    }
    print_evaluation(record, Console(file=stream, width=80))
    text = stream.getvalue()
    assert text.startswith("smollm2-135m with runs/[a]/warmup")
    assert re.search(r"^  Preference, % +83\.6 +79\.1 to 88\.1 +2\.3 +324$", text, re.M)
    assert re.search(r"^  Perplexity +22\.90 +21\.14 to 24\.66 +0\.90 +200$", text, re.M)
    assert "CrowS-Pairs" in text
    assert "Pairs are scored by 'sum'." in " ".join(text.split())
    assert "/age" not in text
