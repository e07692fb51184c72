"""The target protocol: a target exports a model to files and loads them as an engine."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder

from .configurable import ConfigurableStep
from .context import Context
from .engine import Emitted, Engine

__all__ = ["Emitted", "Engine", "Target", "on_engine"]


@dataclass(frozen=True)
class Target(ConfigurableStep):
    """Base of targets: a frozen dataclass whose fields are its options, as in a pass."""

    def check(self) -> None:
        """Check that the libraries and devices of `emit` and `engine` are present.

        Raises:
            MissingError: a library or device is missing; the message says how to install it.
        """

    def check_search(self) -> None:
        """Check that candidates can be built and scored. Most targets use `check` for this.

        Raises:
            MissingError: a library is missing; the message says how to install it.
        """
        self.check()

    def notice(self, timed: str = "on this CPU") -> str:
        """A line for users before a run, about missing parts and their replacement; "" = none.

        Args:
            timed: the place where candidates are timed if no engine of this target runs here.
        """
        del timed
        return ""

    @property
    def timed_as(self) -> str:
        """The target's name in a costs file, without options that hardly change times."""
        return str(self)

    @property
    def runs_here(self) -> bool:
        """False if another engine runs, and is timed, in place of this target's."""
        return True

    def check_model(self, model: Model) -> None:
        """Check that the options fit the given model.

        Raises:
            UsageError: an option names a part that the model does not have.
        """
        del model

    def check_stages(self) -> None:
        """Check that the target supports cascades. Most targets do not.

        Raises:
            UsageError: cascades are not supported; the message says the remedy.
        """
        raise UsageError(
            f"{self} runs one model, a cascade has two\n"
            "use --target onnx, or leave 'cascade' out"
        )

    @property
    def searches_cascades(self) -> bool:
        """True if the search may make cascades by itself, judged by their multiply-adds."""
        return True

    @property
    def exact(self) -> bool:
        """True if the engines compute in fp32: they give the torch module's answers, rounded.

        Candidates of inexact targets are scored and certified on the
        answers of the engines.
        """
        return True

    def variants(self, encoder: Encoder) -> tuple[Target, ...]:
        """Concrete targets that a target such as `auto` may resolve to, the exact first."""
        del encoder
        return (self,)

    def baseline(self) -> Target:
        """The target on which the given model is timed: the same engine in full precision."""
        return self

    def layouts(self) -> tuple[Target, ...]:
        """This target with padding, and then without padding if the target supports this.

        Both targets give the same answers. Both are timed if rows are served in the order of
        arrival.
        """
        return (self,)

    def tuned(self, model: Model, ctx: Context) -> Target:
        """This target with the options that depend on the given model, for all candidates."""
        del model, ctx
        return self

    @abstractmethod
    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write the model into `folder`."""

    def draft(self) -> Target:
        """This target with options that make `emit` quick, for timing shapes."""
        return self

    @abstractmethod
    def engine(self, folder: Path, threads: int) -> Engine:
        """Load the emitted files; an engine on the CPU uses `threads` threads.

        Raises:
            MissingError: the engine's library or device is missing; the message says how to
                install it.
        """

    def bundle(self, model: Model, ctx: Context, folder: Path) -> None:
        """Add serving files to an artifact folder, beside the emitted files."""
        del model, ctx, folder


@contextmanager
def on_engine(target: Target, model: Model, ctx: Context) -> Iterator[Engine]:
    """Export the model and load it as an engine of the target, for the duration of a block."""
    with tempfile.TemporaryDirectory() as folder:
        target.emit(model, ctx, Path(folder))
        yield target.engine(Path(folder), ctx.threads)
