"""Methods of tasks whose answers are vectors. By default, answers are labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.tasks.layout import Layout, TextKind
from prumux.optimizer.tasks.metrics import Predictions


class Vectors:
    """A part of `Task`: models that give one vector for each text."""

    name: ClassVar[str]
    named_outputs: ClassVar[bool] = True
    """True if every output of the model has a name in `labels`."""
    scores_pairs: ClassVar[bool] = False
    """True if only pairs of texts have labels, not single texts."""
    retrieves: ClassVar[bool] = False
    """True if data may consist of queries, documents and judgements."""
    hub_tags: ClassVar[tuple[str, ...]] = ()
    """Further tags of a result's model card."""
    found_by_head: ClassVar[bool] = True
    """True if the name or the weights of a checkpoint's head determine the task."""

    def arranged(self, predictions: Predictions, layout: Layout) -> Predictions:
        """Predictions of the scored rows, combined from predictions of single texts."""
        del layout
        return predictions

    def mean_cosine(self, dense: Predictions, optimised: Predictions) -> float | None:
        """Mean cosine of two models' vectors; None if the predictions are not vectors."""
        del dense, optimised
        return None

    def prompted(self, texts: Sequence[str], kind: TextKind = "text") -> tuple[str, ...]:
        """The texts, each after the model's prompt if there is one."""
        del kind
        return tuple(texts)

    def prompt(self, name: str | None) -> str:
        """The prompt with this name. Without a name: the default prompt, which may be empty.

        Raises:
            UsageError: the model has no such prompt.
        """
        if name is not None:
            raise UsageError(f"{self.name} knows no prompt '{name}'")
        return ""
