"""Check that the engine in an artifact folder belongs to the folder's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prumux.export.graph.builder import INPUTS
from prumux.export.graph.graph import input_names, origin
from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.artifact import second_text
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.pipeline.target import Engine


def check_belongs(
    engine: Engine, encoder: Encoder, config: Mapping[str, Any], at: Path
) -> None:
    """Check that an engine belongs to the model that the folder's config describes.

    Only the engine's metadata are compared. The engine does not run, and no weights are read.

    Args:
        engine: any engine. An engine without metadata is accepted unchecked.
        encoder: the sizes in `config`.
        config: the folder's `config.json`.
        at: the folder.

    Raises:
        ModelError: the metadata differ; the message gives both values.
    """
    source = config.get("source")
    logits = (encoder.labels,) if encoder.pooled else ("tokens", encoder.labels)
    facts = {
        "rows mixed": (encoder.slots, getattr(engine, "slots", None)),
        "inputs": (input_names(encoder), _in_order(getattr(engine, "names", None))),
        "logits a row": (logits, getattr(engine, "logits", None)),
        "sizes": (str(encoder), getattr(engine, "sizes", None)),
        "second stage": (second_text(config), getattr(engine, "second", None)),
        "source model": (
            origin(source) if isinstance(source, Mapping) else None,
            getattr(engine, "origin", None),
        ),
    }
    for what, (expected, found) in facts.items():
        if expected and found and expected != found:
            raise ModelError(
                f"'{at}' is mixed up, its engine is another model's: {what}\n"
                f"config.json: {_text(expected)}\nengine: {_text(found)}\n"
                "write the folder again with prumux-opt"
            )


def _in_order(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Sort input names: engines of one model may list them in different orders."""
    return tuple(sorted(names or (), key=lambda x: (INPUTS.index(x) if x in INPUTS else 9, x)))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
