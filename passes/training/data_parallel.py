"""Data-parallel training: the connection of a learner and its losses to other processes.

Every process computes the loss of its share of a batch. The divisor of a loss is a number of
rows or a variance; it is first summed over all processes. So the gradients add up to the
gradient of the whole batch, for shares of any size.

`torch.nn.parallel.DistributedDataParallel` is not used, for these reasons:

- It averages gradients, which is right only for shares of equal size. Here a share is a number
  of whole mux groups.
- It wraps the `forward` of one module. Here losses need sums during the forward pass, and
  gates and multipliers belong to no module.
- It needs an optimiser in every process. Here only the main process has one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from prumux.optimizer.base.errors import LostError
from prumux.optimizer.data.tokenize import Batch

TIMEOUT_S = 300.0
"""Longest time for which the main process waits for a worker's start or share of a step."""
WORKER_TIMEOUT_S = 86_400.0
"""Longest time for which a worker waits, also during checks and checkpoints."""
STOP = -1
"""The step number that ends the worker processes."""


def _main_process_lost(error: Exception) -> LostError:
    return LostError(f"the main process is gone: {error}".partition("\n")[0])


@dataclass(frozen=True, eq=False)
class DataParallel:
    """A process of the group that trains a model together. Rank 0 is the main process."""

    rank: int = 0
    size: int = 1
    explain: Callable[[Exception], LostError] = _main_process_lost
    """Makes the error to raise if torch.distributed reports that a process is gone."""

    def connect(self, device: str, folder: str) -> None:
        """Wait until all processes are connected.

        Args:
            device: the device on which this process trains. NCCL exchanges tensors on GPUs,
                gloo exchanges tensors on the CPU.
            folder: a folder, empty at first, that all processes share.
        """
        cuda = device.startswith("cuda")
        if cuda:  # then a time-out raises, and does not kill the process
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        self._collective(
            lambda: dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                init_method=Path(folder, "store").as_uri(),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=WORKER_TIMEOUT_S if self.rank else TIMEOUT_S),
            )
        )

    def part(self, batch: Batch, slots: int) -> Batch:
        """Select this process's share of a batch: whole groups of `slots` rows.

        If there are fewer groups than processes, every process takes the whole batch, so that
        none is idle. The result is the same, because counts are summed over processes.
        """
        groups = len(batch.rows) // slots
        if self.size == 1 or groups < self.size:
            return batch
        first, last = (groups * i // self.size * slots for i in (self.rank, self.rank + 1))
        arrays = {x.name: getattr(batch, x.name) for x in fields(batch)}
        cut = {k: x[first:last] for k, x in arrays.items() if x is not None}
        return replace(batch, **cut)

    def total(self, x: Tensor) -> Tensor:
        """The sum of `x` over all processes, without gradients.

        All processes must call this for the same sums in the same order. The sum is taken on
        the CPU. There gloo notices at once that a process has ended; NCCL would notice it only
        after a time-out.
        """
        if self.size == 1:
            return x
        found = x.detach().to("cpu", copy=True)
        self._collective(lambda: dist.all_reduce(found))
        return found.to(x.device)

    def mean(self, value: Tensor, count: int) -> Tensor:
        """Scale a share's mean over `count` items, so that the shares sum to the mean."""
        if self.size == 1:
            return value
        everywhere = float(self.total(torch.tensor(count, dtype=torch.float64)))
        return value * (count / max(1.0, everywhere))

    def share_step(
        self, step: int, progress: float, trained: Sequence[nn.Parameter]
    ) -> tuple[int, float]:
        """Send the main process's step number, progress and parameters to all processes."""
        if self.size == 1:
            return step, progress
        order = torch.tensor([step, progress], dtype=torch.float64)
        self._collective(lambda: dist.broadcast(order, 0))
        if order[0] != STOP:
            flat = parameters_to_vector(trained).detach()
            self._collective(lambda: dist.broadcast(flat, 0))
            if self.rank:
                vector_to_parameters(flat, trained)
        return int(order[0]), float(order[1])

    def stop(self) -> None:
        """End the worker processes."""
        self.share_step(STOP, 0.0, ())

    def backward(self, loss: Tensor, trained: Sequence[nn.Parameter]) -> None:
        """Leave the sum of all processes' gradients in the main process's parameters.

        A parameter without influence on the loss keeps the gradient None. With a gradient of
        zeros, AdamW would still move it.
        """
        for p in trained:
            p.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        if self.size > 1:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
            flat = parameters_to_vector(grads)
            self.total(flat[:1])  # a lost process is noticed here, before NCCL waits for it
            self._collective(lambda: dist.reduce(flat, 0))
            vector_to_parameters(flat, grads)

    def _collective(self, run: Callable[[], object]) -> None:
        """Run an operation of all processes; raises LostError if a process is gone."""
        try:
            run()
        except RuntimeError as error:
            raise self.explain(error) from error


ALONE = DataParallel()
