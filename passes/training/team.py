"""The processes that train one model together, as learners and losses see them.

What a loss divides by is summed over the processes' shares of a batch first. So the gradients
add up to that of the whole batch, whatever the shares.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prumux.optimizer.data.tokenize import Batch

from .link import GRACE_S, PATIENCE_S, Link


@dataclass(frozen=True, eq=False)
class Team:
    """One of the processes, and how it reaches the others."""

    rank: int = 0
    """0 = the main process."""
    size: int = 1
    links: tuple[Link, ...] = ()
    """To all others from the main process; from the others to it."""

    def meet(self, device: str, folder: str) -> None:
        """Wait until all are there; `folder` is empty at first and the same for all."""
        cuda = device.startswith("cuda")
        if cuda:  # so that a time-out raises, and does not kill the process
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        self.together(
            lambda: dist.init_process_group(
                "nccl" if cuda else "gloo",
                init_method=Path(folder, "store").as_uri(),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=PATIENCE_S),
            )
        )

    def part(self, batch: Batch, slots: int) -> Batch:
        """This process's share: whole groups of `slots` rows.

        Where there are fewer groups than processes, each of them takes them all: none has
        nothing to do, and as counts are summed the result is the same.
        """
        groups = len(batch.rows) // slots
        if self.size == 1 or groups < self.size:
            return batch
        first, last = (groups * i // self.size * slots for i in (self.rank, self.rank + 1))
        arrays = {x.name: getattr(batch, x.name) for x in fields(batch)}
        cut = {k: x[first:last] for k, x in arrays.items() if x is not None}
        return replace(batch, **cut)

    def total(self, x: Tensor) -> Tensor:
        """The sum over all processes, without gradients. All must ask for the same sums."""
        if self.size == 1:
            return x
        mine = x.detach().cpu().numpy()
        if self.rank:
            self.links[0].send(mine)
            found = self.links[0].receive()
        else:
            found = sum((link.receive() for link in self.links), mine)
            self.tell(found)
        return torch.as_tensor(found).to(x.device)

    def mean(self, value: Tensor, count: int) -> Tensor:
        """What the mean of `count` things of this share adds to the mean of all."""
        if self.size == 1:
            return value
        everywhere = float(self.total(torch.tensor(count, dtype=torch.float64)))
        return value * (count / max(1.0, everywhere))

    def tell(self, value: object) -> None:
        """Send something to all others; nothing where this process is alone."""
        for link in self.links:
            link.send(value)

    def lead(self, step: int, share: float, trained: Sequence[nn.Parameter]) -> None:
        """Have the others take their gradients of this step, `share` of the way through."""
        self.tell((step, share))
        self.hand_out(trained)

    def hand_out(self, trained: Sequence[nn.Parameter]) -> None:
        """Give all processes the main process's parameters."""
        if self.size > 1:
            flat = torch.cat([p.detach().flatten() for p in trained])
            self.together(lambda: dist.broadcast(flat, 0))
            for p, x in zip(trained, _pieces(flat, trained), strict=True):
                p.data.copy_(x)

    def backward(self, loss: Tensor, trained: Sequence[nn.Parameter]) -> None:
        """Leave the sum of all processes' gradients in the main process's parameters."""
        for p in trained:
            p.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        if self.size > 1:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
            flat = torch.cat([x.flatten() for x in grads])
            self.total(flat[:1])  # who is gone is missed here, before anyone waits in vain
            self.together(lambda: dist.reduce(flat, 0))
            for p, x in zip(trained, _pieces(flat, trained), strict=True):
                if p.grad is not None:  # else AdamW would move what no row has touched
                    p.grad.copy_(x)

    def together(self, do: Callable[[], object]) -> None:
        """Do what needs all processes; raises LostError where one is gone."""
        try:
            do()
        except RuntimeError as error:
            heard = wait([link.pipe for link in self.links], GRACE_S)
            for link in self.links:
                if link.pipe in heard:
                    link.receive()  # raises what became of it
            raise self.links[0].lost(str(error).partition("\n")[0]) from error


ALONE = Team()


def _pieces(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector into the shapes of these tensors."""
    parts = torch.split(flat, [x.numel() for x in like])
    return [part.view_as(x) for part, x in zip(parts, like, strict=True)]
