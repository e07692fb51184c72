"""The pass protocol."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from .configurable import Stage

if TYPE_CHECKING:
    from pathlib import Path

    from prumux.optimizer.model.ir import Model

    from .context import Context


@dataclass(frozen=True)
class Pass(Stage):
    """A frozen dataclass whose fields are its options; the text form follows from them.

    A pass may assume a verified model and must leave one.
    """

    preserves: ClassVar[bool] = False
    """Whether outputs stay the same, up to rounding."""
    shapes: ClassVar[bool] = True
    """Whether sizes or masks may change; if not, sizing a candidate leaves the pass out."""
    trains: ClassVar[bool] = False
    """Whether it takes minutes, so that its result is kept for pipelines that begin alike."""
    marks: ClassVar[bool] = False
    """Whether it leaves masks, which a later pass has to cut out."""
    cuts: ClassVar[bool] = False
    """Whether it makes masks physical."""

    @property
    def reads(self) -> tuple[Path, ...]:
        """Files that the result depends on."""
        return ()

    @property
    def mixes(self) -> int:
        """Rows that share a forward pass after it."""
        return 1

    def requires(self, model: Model) -> None:
        """Refuse a model that this pass cannot take.

        Raises:
            PassError: says the remedy.
        """

    @abstractmethod
    def run(self, model: Model, ctx: Context) -> Model:
        """The new model, or `model` itself if there is nothing to do. Changes no tensor.

        Randomness comes from `ctx.generator(self)` only. `notes` of the result go into the
        receipt.
        """

    def stand_in(self) -> Pass:
        """A pass that takes seconds and leaves about the same sizes; itself, if it does."""
        return self

    def ensures(self, before: Model, after: Model, ctx: Context) -> None:
        """Check what this pass promises beyond a verified model.

        Raises:
            GateError: says both numbers.
        """

    @classmethod
    def choices(cls, model: Model) -> Iterable[Self]:
        """What a tuner should try on `model`; nothing unless a pass says otherwise."""
        del model
        return ()
