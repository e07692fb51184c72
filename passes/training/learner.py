"""The interface of the training loop to a model with a loss."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.pipeline.context import Context

from .data_parallel import DataParallel


class Learner(Protocol):
    """A model and its loss. The training loop trains only the parameters in `groups()`."""

    slots: int
    """Number of rows that the model mixes into one; 1 without multiplexing."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser, each with its `lr`."""

    def loss(self, batch: Batch, progress: float, parallel: DataParallel) -> Tensor:
        """The scalar to minimise.

        Args:
            batch: this process's share of a batch.
            progress: the finished share of the training, 0 to 1.
            parallel: the processes that share the batch. The losses of all shares must add up
                to the loss of the whole batch, see `DataParallel.mean`.
        """

    def validation_loss(self) -> float:
        """The loss on held-out rows. The checkpoint with the least validation loss is kept."""


class LearnerFactory(Protocol):
    """A function that builds a learner on the context's device, and that can be pickled."""

    def __call__(self, *, ctx: Context) -> Learner: ...
