"""Data-parallel training: what a learner and its losses see of the other processes.

Every process computes the loss of its share of a batch. Whatever a loss divides by, a number
of rows or a variance, is summed over all processes first. So the gradients add up to the
gradient of the whole batch, whatever the sizes of the shares.

That is why `torch.nn.parallel.DistributedDataParallel` is not used. It averages gradients,
which is right only for means over shares of one size, and it sees one module's `forward`; here
a share is a number of whole mux groups, losses need sums during the forward pass, gates and
multipliers belong to no module, and only the main process has an optimiser.
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
"""Longest wait of the main process for a worker to start, or for its share of a step."""
WORKER_TIMEOUT_S = 86_400.0
"""Longest wait of a worker, which includes the main process's checks and checkpoints."""
STOP = -1
"""The step number that ends the worker processes."""


def _main_process_lost(error: Exception) -> LostError:
    return LostError(f"the main process is gone: {error}".partition("\n")[0])


@dataclass(frozen=True, eq=False)
class DataParallel:
    """One of the processes that train a model together; rank 0 is the main process."""

    rank: int = 0
    size: int = 1
    explain: Callable[[Exception], LostError] = _main_process_lost
    """The error to raise where torch.distributed reports that a process is gone."""

    def connect(self, device: str, folder: str) -> None:
        """Wait until all processes are there.

        Args:
            device: where this process trains. Tensors on GPUs travel by NCCL, those on the
                CPU by gloo.
            folder: empty at first, the same one for all.
        """
        cuda = device.startswith("cuda")
        if cuda:  # so that a time-out raises, and does not kill the process
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
        """This process's share of a batch: whole groups of `slots` rows.

        Where there are fewer groups than processes, every process takes the whole batch, so
        that none is idle. As counts are summed, the result is the same.
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

        All processes must ask for the same sums in the same order. The sum is taken on the
        CPU: gloo notices at once that a process has ended, NCCL only after a time-out.
        """
        if self.size == 1:
            return x
        found = x.detach().to("cpu", copy=True)
        self._collective(lambda: dist.all_reduce(found))
        return found.to(x.device)

    def mean(self, value: Tensor, count: int) -> Tensor:
        """Turn the mean of this share's `count` items into its summand of the whole mean."""
        if self.size == 1:
            return value
        everywhere = float(self.total(torch.tensor(count, dtype=torch.float64)))
        return value * (count / max(1.0, everywhere))

    def share_step(
        self, step: int, progress: float, trained: Sequence[nn.Parameter]
    ) -> tuple[int, float]:
        """Give all processes the main one's step number, progress and parameters."""
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

        A parameter that took no part in the loss keeps the gradient None, or else AdamW would
        move it.
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
        """Run what needs all processes; raises LostError where one is gone."""
        try:
            run()
        except RuntimeError as error:
            raise self.explain(error) from error


ALONE = DataParallel()
