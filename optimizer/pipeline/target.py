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
    """A frozen dataclass whose fields are its options, as in a pass."""

    def check(self) -> None:
        """Check that the libraries and devices of `emit` and `engine` are present.

        Raises:
            MissingError: one is not; the message says how to install it.
        """

    def check_search(self) -> None:
        """Check that candidates can be built and scored; the same as `check` for most targets.

        Raises:
            MissingError: a library is missing; the message says how to install it.
        """
        self.check()

    def notice(self, timed: str = "on this CPU") -> str:
        """A line for users before a run: the missing parts, and the replacement for them.

        Args:
            timed: where candidates are timed if no engine of this target runs here.
        """
        del timed
        return ""

    @property
    def timed_as(self) -> str:
        """Name under which a costs file holds its times: the target without options that
        hardly change them."""
        return str(self)

    @property
    def runs_here(self) -> bool:
        """False if something else answers in the engine's place, so that times are not its."""
        return True

    def check_model(self, model: Model) -> None:
        """Check that the options fit the given model.

        Raises:
            UsageError: an option names a part that the model does not have.
        """
        del model

    def check_stages(self) -> None:
        """Check that the target takes cascades; most do not.

        Raises:
            UsageError: it does not; the message says what to do.
        """
        raise UsageError(
            f"{self} runs one model, a cascade has two\n"
            "use --target onnx, or leave 'cascade' out"
        )

    @property
    def exact(self) -> bool:
        """True if its engines give the torch module's answers, up to rounding.

        Candidates of other targets are scored and certified on their engines' answers.
        """
        return True

    def variants(self, encoder: Encoder) -> tuple[Target, ...]:
        """Concrete targets that this one may resolve to (as `auto` does), exact first."""
        del encoder
        return (self,)

    def baseline(self) -> Target:
        """The target that the given model is timed on: the same engine in full precision."""
        return self

    def layouts(self) -> tuple[Target, ...]:
        """This target with padding, as a user would run it, then where it has one without.

        Neither loses anything. Both are timed where rows are served as they arrive.
        """
        return (self,)

    def tuned(self, model: Model, ctx: Context) -> Target:
        """This target with its model-dependent options fixed, the same for all candidates."""
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
            MissingError: the engine's library or device is missing; says how to install it.
        """

    def bundle(self, model: Model, ctx: Context, folder: Path) -> None:
        """Add serving files to an artifact folder that holds the emitted files."""
        del model, ctx, folder


@contextmanager
def on_engine(target: Target, model: Model, ctx: Context) -> Iterator[Engine]:
    """Export the model and load it as an engine of the target, while the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        target.emit(model, ctx, Path(folder))
        yield target.engine(Path(folder), ctx.threads)
