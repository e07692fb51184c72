"""The methods of a task that answers with vectors; by default answers are labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.tasks.layout import Layout, TextKind
from prumux.optimizer.tasks.metrics import Predictions


class Vectors:
    """Models that give a vector a text: a part of `Task`."""

    name: ClassVar[str]
    named_outputs: ClassVar[bool] = True
    """Whether each of a model's outputs has a name, so that `labels` counts them."""
    scores_pairs: ClassVar[bool] = False
    """Whether a text of its own has no label: only pairs have."""
    retrieves: ClassVar[bool] = False
    """Whether data may be queries, documents and judgements."""
    hub_tags: ClassVar[tuple[str, ...]] = ()
    """Further tags of a result's model card."""
    found_by_head: ClassVar[bool] = True
    """Whether the name or the weights of a checkpoint's head tell the task."""

    def arranged(self, predictions: Predictions, layout: Layout) -> Predictions:
        """Predictions of the rows that are scored, from those of single texts."""
        del layout
        return predictions

    def mean_cosine(self, dense: Predictions, optimised: Predictions) -> float | None:
        """Mean cosine of two models' vectors; None if the predictions are not vectors."""
        del dense, optimised
        return None

    def prompted(self, texts: Sequence[str], kind: TextKind = "text") -> tuple[str, ...]:
        """Texts with the model's prompt before them, if it has one."""
        del kind
        return tuple(texts)

    def prompt(self, name: str | None) -> str:
        """The prompt of a name; without a name the default one, which may be empty.

        Raises:
            UsageError: the model has no such prompt.
        """
        if name is not None:
            raise UsageError(f"{self.name} knows no prompt '{name}'")
        return ""
