"""What a task says of answers that are spans of a text; by default answers are labels.

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
    """Answers that are spans of a text, which is read in windows: a part of `Task`."""

    name: ClassVar[str]
    finds_spans: ClassVar[bool] = False
    """Whether a row is a question with a context, and its answer a span of the context."""
    outputs: ClassVar[tuple[str, ...]] = ()
    """Names of further outputs of a graph, each one column of the logits, [B, T]."""

    @property
    def shared_tokens(self) -> int | None:
        """Tokens that two windows share, 0 = by their length; None = there are no windows."""
        return None

    def with_stride(self, stride: int) -> Self:
        """The task with windows that share so many tokens.

        Raises:
            UsageError: it reads no windows.
        """
        raise UsageError(
            f"--stride {stride} is for question answering, this is a {self.name} model\n"
            "leave it out"
        )

    def on_labels(self, labels: Iterable[Labels | None]) -> Self:
        """The task on these labels, where they say more of it than the model's config."""
        del labels
        return self

    def span_answers(self, logits: Sequence[NDArray[Any]], layout: Layout) -> list[TextSpan]:
        """The answer that a user gets to each question.

        Args:
            logits: of each window, [T, C].
            layout: the windows.
        """
        raise UsageError(f"{self.name} finds no spans")

    def counted(self, real: Tensor, labels: Any) -> Tensor:
        """The positions whose logits count, bool [B, T].

        Args:
            real: bool [B, T], True on real tokens.
            labels: of the positions, [B, T], or None.
        """
        del labels
        return real

    def position_loss(
        self, student: Tensor, teacher: Tensor, counted: Tensor, temperature: float
    ) -> tuple[Tensor, int]:
        """Mean distance of logits [B, T, C] at the positions that count, and over how many."""
        found = student[counted]
        return self.logit_loss(found, teacher[counted], temperature), len(found)

    if TYPE_CHECKING:

        def logit_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
            """See `Task.logit_loss`."""
