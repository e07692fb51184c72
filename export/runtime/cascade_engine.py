"""A cascade as two engines: the host chooses the deferred rows between them.

An artifact folder with `cascade.json` has an engine for each stage, in `first/` and `second/`.
The file has the rule that chooses the deferred rows, in the form of `second` in `config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prumux.export.graph.parity import TOLERANCES
from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.artifact import STAGES, second_config, second_of, second_text
from prumux.optimizer.model.folder import read_json
from prumux.optimizer.model.model import SecondStage
from prumux.optimizer.model.row_groups import deferred_rows, deferring, in_groups
from prumux.optimizer.pipeline.target import Engine

CASCADE_FILE = "cascade.json"


class FileEngine(Engine, Protocol):
    """An engine that was opened from a file."""

    slots: int
    """Number of rows that share a forward pass."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the engine's inputs, in order."""


class CascadeEngine:
    """Runs the first engine on all rows, and the second engine on the deferred rows."""

    def __init__(
        self, first: FileEngine, second: FileEngine, about: Mapping[str, Any]
    ) -> None:
        """Join two open engines.

        Args:
            first: answers all rows.
            second: answers the deferred rows.
            about: the content of `cascade.json`.

        Raises:
            ModelError: the second engine is another model's, or `about` is damaged.
        """
        try:
            sizes, rule = second_of(about["second"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{CASCADE_FILE} is not one that prumux wrote: {error}\n"
                "write the folder again with prumux-opt"
            ) from error
        found = getattr(second, "sizes", "")
        if found and found != str(sizes):
            raise ModelError(
                f"the second engine is another model's\n{CASCADE_FILE}: {sizes}\n"
                f"engine: {found}\nwrite the folder again with prumux-opt"
            )
        self._first, self._second = first, second
        self._rule = rule["threshold"], rule["max_share"]
        self._run = in_groups(deferring(first.run, second.run, *self._rule), first.slots)
        self.slots = first.slots
        """Number of rows that share a forward pass of the first engine."""
        self.second = second_text(about)
        """Text form of the `SecondStage`."""
        self.sizes: str = getattr(first, "sizes", "")
        """Text form of the first stage's `Encoder`. Empty if the engine does not state it."""
        self.logits: tuple[Any, ...] = getattr(first, "logits", ())
        self.origin: str = getattr(first, "origin", "")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return self._first.names

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits, float32 [B, C], for any number of rows. Errors are those of the engines."""
        return self._run(inputs)

    def deferred(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Mask of the rows that the second engine answers, [B]: 1 = deferred, 0 = not."""

        def whole_groups(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
            logits = self._first.run(inputs)
            found = np.zeros(len(logits))
            found[deferred_rows(logits, *self._rule)] = 1
            return found

        return in_groups(whole_groups, self.slots)(inputs)

    def describe(self) -> Mapping[str, str]:
        """Facts of the first engine, and those in which the second one differs.

        The precision is that of the engine with the larger tolerance.
        """
        one, two = dict(self._first.describe()), dict(self._second.describe())
        other = {f"second_{name}": x for name, x in two.items() if one.get(name) != x}
        known = [x["precision"] for x in (one, two) if "precision" in x]
        if known:
            one["precision"] = max(known, key=lambda x: TOLERANCES.get(x, 0.0))
        return {**one, "stages": "two engines, the host defers rows", **other}


def write_cascade(second: SecondStage | None, folder: Path) -> tuple[str, ...]:
    """Write `cascade.json` for a model with a second stage; for others remove an old file.

    Returns:
        The names of the written files.
    """
    path = folder / CASCADE_FILE
    if second is None:
        path.unlink(missing_ok=True)
        return ()
    folder.mkdir(parents=True, exist_ok=True)
    about = {"second": second_config(second)}
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return (CASCADE_FILE,)


def stage_folders(folder: Path) -> tuple[Path, ...]:
    """The folders of the engines in an artifact folder: two for a cascade, else one."""
    if (folder / CASCADE_FILE).exists():
        return tuple(folder / x for x in STAGES)
    return (folder,)


def open_stages(folder: Path, open_engine: Callable[[Path], FileEngine]) -> FileEngine:
    """Open the engine of an artifact folder, or the two engines of a cascade.

    Args:
        folder: the artifact folder.
        open_engine: opens the engine in a folder.

    Raises:
        ModelError: `cascade.json` is damaged, or an engine is another model's.
    """
    first, *second = (open_engine(x) for x in stage_folders(folder))
    if not second:
        return first
    return CascadeEngine(first, second[0], read_json(folder / CASCADE_FILE))
