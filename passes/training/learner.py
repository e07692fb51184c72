"""The interface between the training loop and a model with a loss."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.pipeline.context import Context

from .data_parallel import DataParallel


class Learner(Protocol):
    """A model and its loss. The loop trains the parameters of its groups and no others."""

    slots: int
    """Rows that the model mixes into one; 1 without multiplexing."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser, each with its `lr`."""

    def loss(self, batch: Batch, progress: float, parallel: DataParallel) -> Tensor:
        """The scalar to minimise.

        Args:
            batch: this process's share of a batch.
            progress: how much of the training is over, 0 to 1.
            parallel: the processes. The losses of all shares must add up to the loss of the
                whole batch, see `DataParallel.mean`.
        """

    def validation_loss(self) -> float:
        """The loss on rows that are not trained on; the checkpoint with the least one wins."""


class LearnerFactory(Protocol):
    """Builds a learner on the context's device. It can be pickled."""

    def __call__(self, *, ctx: Context) -> Learner: ...
