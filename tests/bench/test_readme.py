"""The README of bench/ names every script, and its links lead to files and headings."""

from __future__ import annotations

import re

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
    headings = {
        re.sub(r"[^\w -]", "", x.lower()).replace(" ", "-")
        for x in re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) > 30
    for link in links:
        file, _, heading = link.partition("#")
        assert not file or (BENCH / file).exists(), link
        assert file or heading in headings, link


def test_every_result_that_the_readmes_do_not_use_is_gone() -> None:
    main = (BENCH.parent / "README.md").read_text(encoding="utf-8")
    unused = {x.name for x in (BENCH / "results").iterdir() if x.name not in TEXT + main}
    assert unused == set()
