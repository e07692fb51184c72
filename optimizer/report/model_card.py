"""The README.md of a result, which the Hugging Face hub shows as the model card."""

from __future__ import annotations

import re
from pathlib import Path

from prumux.optimizer.base.store import write_atomic
from prumux.optimizer.tasks import registry

from .contents import Report
from .formats import points
from .html import environment, verdict

CARD = "README.md"
TAGS = ("prumux", "onnx", "pruning", "model-compression")


def write_model_card(report: Report, folder: Path) -> None:
    """Write README.md into the folder of the result."""
    write_atomic(folder / CARD, model_card(report).encode("utf-8", "surrogatepass"))


def model_card(report: Report) -> str:
    """The text of the card: YAML for the hub, the model, its figures, and how to load it.

    All facts come from the report. The card shows no path except the given model's name.
    """
    task = registry.from_report({} if report.task is None else vars(report.task))
    precision = report.engine.get("precision", "fp32")
    tags = [*TAGS, *([precision] if precision != "fp32" else [])]
    tags += task.hub_tags
    if report.mux is not None:
        tags.append("data-multiplexing")
    jinja = environment()
    jinja.filters["plain_text"] = plain_text
    return jinja.get_template("model_card.md.jinja").render(
        r=report,
        tags=tags,
        task=task,
        verdict=verdict(report),
        points=points,
        processor=report.device.get("cpu", "an unknown processor"),
    )


def plain_text(text: str) -> str:
    """Escape a text, so that Markdown shows it literally on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.split()))
