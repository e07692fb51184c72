"""The main README: its figures, examples and pictures; and the links of every page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from prumux.optimizer.model.families.registry import families
from prumux.optimizer.model.source import load_model
from tests.helpers import checkpoints
from tests.helpers.factory import tiny_tokenizer
from tests.helpers.readme import (
    ARTIFACT,
    anchors,
    broken_links,
    python_blocks,
    run_blocks,
    write_artifact,
)
from tests.helpers.scripts import script

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
OTHER_NAMES = {"xlm-roberta": "XLM-R", "nomic_bert": "NomicBERT"}
"""`model_type`s that the README calls otherwise."""
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *(
        x
        for top in ("optimizer", "passes", "export", "bench")
        for x in (ROOT / top).rglob("*.md")
    ),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda x: str(x.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `x`, two\n[a](#one-x-two) [b](#two) [c](none.md) [d](page.md#one-x-two)\n"
        "[e](page.md#three) [f](http://example.org)\n```\n# code\n[g](none)\n```\n[h](#code)\n"
    )
    assert anchors(page.read_text()) == {"one-x-two"}
    assert broken_links(page) == [
        "#two", "none.md", "page.md#three", "http://example.org", "#code",
    ]  # fmt: skip


def test_it_is_two_screens_long() -> None:
    assert TEXT.count("\n") <= 130


def test_every_family_is_named() -> None:
    (line,) = re.findall(
        r"^- \*\*Families\*\* \(.+?\): (.+?)^- ", TEXT, re.MULTILINE | re.DOTALL
    )
    named = {x.lower() for x in re.findall(r"[\w-]+", line)}
    missing = {x for x in families() if OTHER_NAMES.get(x, x).lower() not in named}
    assert missing == set()


def test_the_table_is_that_of_the_results() -> None:
    rows = re.findall(r"^\| \[(\d+) %\]\(.+?\) (\|.+)$", TEXT, re.MULTILINE)
    shipped = script("pictures").read_all()
    assert [f"{x}%" for x, _ in rows] == [x.budget for x in shipped]
    for (_, row), x in zip(rows, shipped, strict=True):
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[1] == f"{x.certified:.2f}, at most {x.bound:.2f}"
        assert cells[2] == f"{x.test:.2f}, at most {x.test_bound:.2f}"
        assert cells[3] == f"**{x.throughput:#.3g}x** [{x.low:#.3g}, {x.high:#.3g}]"
    pictures = re.findall(r"!\[([^]]+)\]\((.+?)\)", TEXT)
    assert all(f"{x.throughput:.3g}x" in pictures[0][0] for x in shipped)
    assert f"at most {shipped[1].bound:.2f} points" in pictures[1][0]
    for _, name in pictures:
        assert 10_000 < (ROOT / name).stat().st_size < 150_000


@pytest.mark.parametrize("family", sorted(families()))
def test_the_python_examples_run(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checkpoints.config(family, vocab_size=101)
    checkpoint = checkpoints.write(tmp_path / "given", config)
    tiny_tokenizer(pad_id=config["pad_token_id"]).save_pretrained(checkpoint)
    write_artifact(load_model(str(checkpoint)), tmp_path / ARTIFACT)
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(TEXT)
    assert len(blocks) == 3
    names = run_blocks(blocks)
    logits, tokens, module, model = (names[x] for x in ("logits", "tokens", "module", "model"))
    with torch.inference_mode():
        expected = module(**{k: torch.as_tensor(x) for k, x in tokens.items()}).logits.numpy()
    assert expected.shape == (2, 2)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    (answer,) = model.predict(["a charming journey"])
    assert answer.label in config["id2label"].values()
