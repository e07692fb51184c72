"""READMEs under test: Python blocks, links, headings, and an artifact for the examples."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prumux.export.onnx import Onnx
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.model import Model
from tests.helpers.factory import make_context

ARTIFACT = "my-model-prumux"
"""The folder that the READMEs' examples load."""
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def python_blocks(text: str) -> list[str]:
    """The Python code blocks, in order."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run_blocks(blocks: Iterable[str]) -> dict[str, Any]:
    """Run the blocks one after the other, as a reader would; returns their names."""
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    return names


def write_artifact(model: Model, folder: Path) -> None:
    """Write what the examples read: weights, config, tokenizer and `model.onnx`."""
    save_artifact(model, folder)
    Onnx(fusion="none").emit(model, make_context(model), folder)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", x.lower()).replace(" ", "-") for x in headings}


def links(text: str) -> list[str]:
    """The targets of all links and pictures outside code blocks."""
    return re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))


def broken_links(file: Path) -> list[str]:
    """The links of a Markdown file to files or headings that do not exist.

    Links to other hosts are not followed; they only have to begin with `https://`.
    """
    found = []
    for link in links(file.read_text(encoding="utf-8")):
        if "://" in link:
            fine = link.startswith("https://")
        else:
            name, _, anchor = link.partition("#")
            target = file.parent / name if name else file
            fine = target.exists() and (
                not anchor or anchor in anchors(target.read_text(encoding="utf-8"))
            )
        if not fine:
            found.append(link)
    return found
