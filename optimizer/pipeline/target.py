"""The target protocol: what turns a model into files, and files into a running engine."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .configurable import Stage

if TYPE_CHECKING:
    from prumux.optimizer.model.ir import Encoder, Model

    from .context import Context


@dataclass(frozen=True)
class Emitted:
    """What a target wrote."""

    files: tuple[str, ...]
    """Relative to the folder."""
    notes: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """A loaded engine, ready to run."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits, float32 [B, C] or [B, T, C].

        `inputs`: `input_ids`, `attention_mask`[, `token_type_ids`], each int [B, T].
        """

    def describe(self) -> Mapping[str, str]:
        """What a measurement must state: `engine`, `version`, `device`, `threads`, ..."""


@dataclass(frozen=True)
class Target(Stage):
    """A frozen dataclass whose fields are its options, as in a pass."""

    def check(self) -> None:
        """Look whether what `emit` and `engine` need is here, before anything long begins.

        Raises:
            MissingError: it is not; says how to get it.
        """

    def check_model(self, model: Model) -> None:
        """Look whether the options fit the given model.

        Raises:
            UsageError: one names what the model does not have.
        """
        del model

    @property
    def exact(self) -> bool:
        """Whether its engines give the torch module's answers, up to rounding.

        Where not, candidates are scored and certified by what their engines answer.
        """
        return True

    def variants(self, encoder: Encoder) -> tuple[Target, ...]:
        """What this may stand for, an exact one first; a run keeps what pays."""
        del encoder
        return (self,)

    def baseline(self) -> Target:
        """Where the given model is timed: the same engine, nothing lowered."""
        return self

    def tuned(self, model: Model, ctx: Context) -> Target:
        """This target with what depends on the given model decided, for all candidates."""
        del model, ctx
        return self

    @abstractmethod
    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write the model into `folder`."""

    def draft(self) -> Target:
        """This target with the options that make `emit` quick, for timing shapes."""
        return self

    @abstractmethod
    def engine(self, folder: Path, threads: int) -> Engine:
        """Load what `emit` wrote, on `threads` CPU threads where the engine uses them.

        Raises:
            MissingError: the engine's library or device is not here; says how to get it.
        """

    def bundle(self, model: Model, ctx: Context, folder: Path) -> None:
        """Add what serving needs to an artifact folder that holds what `emit` wrote."""
        del model, ctx, folder


@contextmanager
def on_engine(target: Target, model: Model, ctx: Context) -> Iterator[Engine]:
    """The model as an engine of the target, for as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        target.emit(model, ctx, Path(folder))
        yield target.engine(Path(folder), ctx.threads)
