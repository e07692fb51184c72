"""report.html: whole, safe, and asking nothing of a network."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.cli.report import main
from prumux.optimizer.report.formats import TIMES, duration, plain
from prumux.optimizer.report.html import render, verdict
from tests.helpers.chromium import browser, opened
from tests.helpers.reports import KINDS, as_report, changed, recorded

VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}
SECTIONS = (
    "verdict", "frontier", "layers", "scores", "speed", "trials", "proofs", "engine",
    "passes", "data", "setup", "serve",
)  # fmt: skip
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&"


class Parsed(HTMLParser):
    """Checks that elements are closed in order; keeps them and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {k: v or "" for k, v in attrs}))
        assert len(dict(attrs)) == len(attrs), f"<{tag}> names an attribute twice"
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text += data

    def said(self) -> str:
        """The text on one line, with x for the sign of multiplication."""
        return " ".join(self.text.split()).replace(TIMES, "x")

    def ids(self) -> list[str]:
        return [attrs["id"] for _, attrs in self.found if "id" in attrs]

    def marks(self, kind: str) -> int:
        wanted = f"mark {kind}"
        figure = [a for t, a in self.found if t == "g" and a.get("class") == wanted]
        return len(figure)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_report_is_a_whole_page(kind: str) -> None:
    report = changed(kind)
    page = render(as_report(report))
    found = Parsed(page)
    ids = found.ids()
    assert len(set(ids)) == len(ids)
    assert set(ids) >= {*SECTIONS, *(["mux"] if report["mux"] else [])}
    for tag, attrs in found.found:
        for name in attrs.get("aria-labelledby", "").split():
            assert name in ids
        if tag == "a":
            assert attrs["href"].removeprefix("#") in ids
        if tag == "svg":
            assert "aria-labelledby" in attrs or attrs["aria-hidden"] == "true"
        if tag == "th":
            assert attrs["scope"] in ("row", "col")
    assert "nan" not in re.findall(r"[a-z]+", found.text.lower())
    assert verdict(as_report(report)) in found.text


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_asked_of_a_network(kind: str) -> None:
    page = render(as_report(changed(kind)))
    for tag, attrs in Parsed(page).found:
        assert tag not in ("script", "iframe", "object", "img")
        assert "src" not in attrs
        assert not any(name.startswith("on") for name in attrs)
        if "href" in attrs:
            assert attrs["href"].startswith(("#", "data:,"))
    assert not re.search(r"url\(|@import|https?:", page)


def frontier_of(page: str) -> Parsed:
    start = page.index('<svg id="frontier-svg"')
    return Parsed(page[start : page.index("</svg>", start) + 6])


@pytest.mark.parametrize("kind", KINDS)
def test_the_frontier_has_a_mark_for_all_that_was_measured(kind: str) -> None:
    report = changed(kind)
    found = frontier_of(render(as_report(report)))
    assert found.marks("dense") == 1
    assert found.marks("trial") == len([t for t in report["trials"] if t["loss"] is not None])
    holds = [p["holds"] for p in report["proofs"]]
    assert found.marks("holds") == sum(holds)
    assert found.marks("fails") == len(holds) - sum(holds)
    assert found.marks("test") == ("test" in report["scores"])
    width, height = (float(x) for x in found.found[0][1]["viewbox"].split()[2:])
    for _, attrs in found.found:
        for name, most in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            assert 0 <= float(attrs.get(name, 0)) <= most
    if report["limit"] is not None:
        assert 'class="budget"' in render(as_report(report))


@pytest.mark.parametrize("kind", KINDS)
def test_the_legend_explains_each_mark_of_the_frontier(kind: str) -> None:
    page = render(as_report(changed(kind)))
    start = page.index('<ul class="legend">')
    legend = Parsed(page[start : page.index("</ul>", start) + 5])
    for mark in ("dense", "trial", "holds", "fails", "shipped", "test"):
        assert legend.marks(mark) == (frontier_of(page).marks(mark) > 0), mark


def test_all_figures_stand_on_the_page() -> None:
    report = recorded()
    text = Parsed(render(as_report(report))).said()
    dense, ours = report["speed"]["dense"], report["speed"]["optimised"]
    test = report["scores"]["test"]
    bound = 100 * report["scores"]["certify"]["loss_upper"]
    ffn = max(report["layers"]["ffn"])
    for words in (
        f"{ours['throughput_ratio']:.2f}x the dense model's throughput, "
        f"at most {bound:.2f} points of accuracy lost",
        "95% confidence, budget 2%",
        f"{dense['rows_per_second']:.0f} → {ours['rows_per_second']:.0f} rows/s",
        f"slowest to fastest round {ours['throughput_ratio_low']:.2f}x "
        f"to {ours['throughput_ratio_high']:.2f}x",
        f"{100 * test['score_dense']:.2f} → {100 * test['score']:.2f} accuracy; at most "
        f"{100 * test['loss_upper']:.2f} with 95% confidence; {test['rows']} rows",
        report["data"]["digest"],
        report["source"]["digest"],
        report["command"],
        *report["data"]["roles"],
        *report["versions"].values(),
        *report["engine"].values(),
        "prumux.load",
        "AutoModelForSequenceClassification",
        "onnxruntime.InferenceSession",
        f"{ffn}/1536",
    ):
        assert words in text, words
    for trial in report["trials"]:
        assert trial["pipeline"] in text


def test_other_kinds_say_what_they_are() -> None:
    texts = {kind: Parsed(render(as_report(changed(kind)))).said() for kind in KINDS}
    assert "No candidate met the budget. The unpruned model is shipped" in texts["refused"]
    assert "at most 2.03 with 95% confidence" in texts["refused"]
    assert "Nothing was certified" in texts["no budget"]
    assert "no test rows" in texts["no budget"]
    assert "Run from Python" in texts["no budget"]
    assert "was dropped: it ran at 0.80x the dense engine's throughput" in texts["dropped"]
    assert "90.00 [89.00, 91.00]" in texts["mux"]
    assert "too few rows" in texts["mux"]
    assert "multiple of 2 rows" in texts["mux"]
    assert "dense, int8" in texts["beside"]
    assert "predicted throughput" in texts["predicted"]
    assert "out of reach" in texts["failed"]
    assert "AutoModelForTokenClassification" in texts["tokens"]
    assert "[88.00, 91.00]" in texts["tokens"]
    assert "Warning: the optimised model never answers '<positive>'" in texts["classes"]
    for words in ("<positive>", "88.51", "86.71", "-1.80", "+2.57", "no rows"):
        assert words in texts["classes"]
    assert "against the given model's answers" in texts["classes"]


def put(value: Any, text: str) -> Any:
    """The same value with `text` after every string in it, keys of dictionaries included."""
    if isinstance(value, str):
        return value + text
    if isinstance(value, list):
        return [put(x, text) for x in value]
    if isinstance(value, dict):
        return {k: put(v, text) for k, v in value.items()}
    return value


def test_what_users_wrote_is_never_code() -> None:
    report = put(recorded(), HOSTILE)
    report["command"] = f"prumux-opt '/tmp/<script>x</script>/model' {HOSTILE}"
    report["export"] = {
        k: {f"{HOSTILE}{n}": v for n, v in x.items()} for k, x in recorded()["export"].items()
    }
    report["files"] = [f"{HOSTILE}.onnx"]
    report["serving"] = recorded()["serving"]  # `data` or a number: no text of a user
    page = render(as_report(report))
    found = Parsed(page)
    assert {"script", "img"}.isdisjoint({tag for tag, _ in found.found})
    assert "<script" not in page
    assert report["command"] in found.text
    assert all(not name.startswith("on") for _, attrs in found.found for name in attrs)


def test_the_page_is_made_again_of_report_json(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(recorded()))
    assert main([str(path)]) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(
        as_report(recorded())
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_other_files_are_no_reports(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"report\.json' is no report"):
        main([str(path)])
    with pytest.raises(UsageError, match="write: python -m"):
        main([])


def test_numbers_in_words() -> None:
    assert duration(3e-5) == "<1 ms"
    assert duration(0.0312) == "0.031 s"
    assert duration(59.6) == "1 min"
    assert duration(3725) == "1 h 2 min 5 s"
    assert plain({"a": [1, 0.123456, True], "b": None}) == "a: 1, 0.1235, yes; b: none"
    assert plain({}) == "none"


@pytest.mark.skipif(browser() is None, reason="no chromium on PATH")
@pytest.mark.parametrize("kind", ["plain", "refused", "mux"])
def test_a_browser_shows_it(kind: str, tmp_path: Path) -> None:
    report = changed(kind)
    path = tmp_path / "report.html"
    path.write_text(render(as_report(report)), encoding="utf-8")
    program = browser()
    assert program is not None
    with opened(program, tmp_path / "profile") as page:
        page.set(390)
        page.open(path)
        asked = [x["request"]["url"] for x in page.told("Network.requestWillBeSent")]
        assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}
        assert page.told("Log.entryAdded", "Runtime.exceptionThrown") == []
        assert page.told("Runtime.consoleAPICalled") == []
        sizes = page.value(
            "[...document.querySelectorAll('#frontier-svg .mark')].map(x => "
            "{const b = x.getBoundingClientRect(); return [b.width, b.height]})"
        )
        marks = 1 + len(report["trials"]) + len(report["proofs"]) + 1
        assert len(sizes) >= marks
        assert all(width > 3 and height > 3 for width, height in sizes)
        whole = page.value("document.documentElement.scrollWidth")
        assert whole <= 390, "a phone would have to scroll sideways"
        light = page.value("getComputedStyle(document.body).backgroundColor")
        page.set(1100, dark=True)
        assert page.value("getComputedStyle(document.body).backgroundColor") != light
