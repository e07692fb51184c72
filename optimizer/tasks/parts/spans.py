"""Methods of tasks whose answers are spans of a text. By default, answers are labels.

Axis letters: B rows of a batch, T positions of a row, C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from numpy.typing import NDArray
from torch import Tensor

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.tasks.labels import Labels
from prumux.optimizer.tasks.layout import Layout
from prumux.optimizer.tasks.prediction import TextSpan


class Spans:
    """A part of `Task`: answers that are spans of a text. The text is read in windows."""

    name: ClassVar[str]
    finds_spans: ClassVar[bool] = False
    """True if a row is a question with a context and the answer is a span of the context."""
    outputs: ClassVar[tuple[str, ...]] = ()
    """Names of a graph's further outputs. Each output is one column of the logits, [B, T]."""

    @property
    def shared_tokens(self) -> int | None:
        """Number of tokens that neighbouring windows share.

        0 = chosen by the length of the windows. None = the task has no windows.
        """
        return None

    def with_stride(self, stride: int) -> Self:
        """The task with windows that share `stride` tokens.

        Raises:
            UsageError: the task has no windows.
        """
        raise UsageError(
            f"--stride {stride} is for question answering, this is a {self.name} model\n"
            "leave it out"
        )

    def on_labels(self, labels: Iterable[Labels | None]) -> Self:
        """The task, updated if these labels contain facts that the model's config lacks."""
        del labels
        return self

    def span_answers(self, logits: Sequence[NDArray[Any]], layout: Layout) -> list[TextSpan]:
        """The answer to each question, in the form that users get.

        Args:
            logits: one array [T, C] per window.
            layout: the windows.
        """
        raise UsageError(f"{self.name} finds no spans")

    def counted(self, real: Tensor, labels: Any) -> Tensor:
        """True at positions whose logits count, bool [B, T].

        Args:
            real: bool [B, T], True at real tokens.
            labels: labels of the positions, [B, T], or None.
        """
        del labels
        return real

    def position_loss(
        self, student: Tensor, teacher: Tensor, counted: Tensor, temperature: float
    ) -> tuple[Tensor, int]:
        """Mean distance of logits [B, T, C] at the counted positions, and their number."""
        found = student[counted]
        return self.logit_loss(found, teacher[counted], temperature), len(found)

    if TYPE_CHECKING:

        def logit_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
            """See `Task.logit_loss`."""
