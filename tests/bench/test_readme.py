"""The README of bench/ names every script, and its links lead to files and headings."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.helpers.readme import broken_links, links
from tests.helpers.scripts import BENCH

TEXT = (BENCH / "README.md").read_text(encoding="utf-8")


def test_every_script_has_a_line_with_its_question_and_command() -> None:
    table = TEXT.split("## Setting")[0]
    named = re.findall(
        r"^\| `(\w+)\.py` \| [^|]+ \| `python bench/(\w+)\.py ", table, re.MULTILINE
    )
    assert [a for a, b in named if a != b] == []
    assert sorted(a for a, _ in named) == sorted(x.stem for x in BENCH.glob("*.py"))


def test_links_lead_somewhere() -> None:
    assert len(links(TEXT)) > 30
    assert broken_links(BENCH / "README.md") == []


def test_every_result_that_the_readmes_do_not_use_is_gone() -> None:
    main = (BENCH.parent / "README.md").read_text(encoding="utf-8")
    unused = {x.name for x in (BENCH / "results").iterdir() if x.name not in TEXT + main}
    assert unused == set()


def test_the_table_of_the_guarantee_is_that_of_its_result() -> None:
    path = BENCH / "results" / "sst2-guarantee.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    section = TEXT[TEXT.index("## Guarantee") :]
    for rows in (300, 872, 2000):
        expected = [
            "nothing found"
            if x["exact_only"] == 1
            else f"{100 * x['broken']:.1f} %, {100 * x['median_true_loss']:.2f}".replace(
                "0.0 %", "0 %"
            )
            for x in entries
            if x["rows"] == rows
        ]
        assert f"| {rows} | {' | '.join(expected)} |" in section
    worst = max(x["broken"] for x in entries)
    main = (BENCH.parent / "README.md").read_text(encoding="utf-8")
    assert f"at most {100 * worst:.1f} % of users" in main


def test_the_figures_of_robustness_are_those_of_their_results() -> None:
    def read(part: str) -> Any:
        path = BENCH / "results" / f"robustness-{part}.json"
        return json.loads(path.read_text(encoding="utf-8"))

    section = TEXT[TEXT.index("## Robustness") :]
    mutations, kills, crossed = read("mutations"), read("kills"), read("crossed")
    codes = ", ".join(f"{n:,} with {code}" for code, n in mutations["exit_codes"].items())
    ended = f"{mutations['cases']:,} inputs, {mutations['full_runs']} of them run to the end"
    assert f"| {ended} | {codes} | {mutations['faults']} |" in section
    efforts = ", ".join(f"{x['kills']} of {name}" for name, x in kills["efforts"].items())
    assert f"| {kills['kills']} kills | {efforts} | {kills['other_result']} |" in section
    for x in crossed["lanes"]:
        faults = x["crossed"] + x["not_answered"] + x["groups_of_two_tenants"]
        assert (
            f"| {x['rows']:,} rows | `{x['lane']}`, {x['runs']:,} runs | {faults} |" in section
        )
