"""Training on several devices of one machine, with a process for each.

The main process leads: at every step it hands out the weights, all take the gradient of their
share of the batch, and it takes the step. Clock, checks and checkpoints are its own; the
others keep nothing. Weights and gradients go by torch.distributed, NCCL between GPUs and gloo
on a CPU; all else goes by pipes.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.pipeline.context import Context

from .link import Link, started
from .row_order import stream
from .team import ALONE, Team

if TYPE_CHECKING:
    from .loop import Learner

CODE = "from prumux.passes.training.parallel import follow; follow({})"


class Make(Protocol):
    """Builds a learner on the context's device. It can be pickled."""

    def __call__(self, *, ctx: Context) -> Learner: ...


@dataclass(frozen=True)
class Job:
    """What all processes train."""

    make: Make
    rows: Encoded
    batch: int
    ctx: Context

    def packed(self) -> bytes:
        """Without what only the main process needs.

        A plain pickle: sent as they are, torch would move all tensors to shared memory, of
        which a container has little.
        """
        ctx = replace(self.ctx, train=None, target=None, workload=(), progress=Progress())
        return pickle.dumps(replace(self, ctx=replace(ctx, store=Store(), cache=Store())))


def devices(device: str) -> tuple[str, ...]:
    """What to train on: all GPUs for `cuda`, else the device itself."""
    if device != "cuda" or not dist.is_nccl_available() or dist.is_initialized():
        return (device,)
    here = torch.cuda.current_device()
    others = (i for i in range(torch.cuda.device_count()) if i != here)
    return (device, *(f"cuda:{i}" for i in others))


@contextmanager
def crew(job: Job | None) -> Iterator[Team]:
    """The team as the main process sees it: with a process for each further device.

    Raises:
        LostError: another process failed or died.
    """
    on = devices(job.ctx.device) if job else ()
    if job is None or len(on) == 1:
        yield ALONE
        return
    links: list[Link] = []
    with TemporaryDirectory(prefix="prumux-") as folder:
        try:
            for device in on[1:]:
                links.append(started(CODE, device, job.ctx.progress.level))
            team = Team(0, len(on), tuple(links))
            packed, threads = job.packed(), torch.get_num_threads()
            for rank, link in enumerate(links, 1):
                link.send((rank, len(on), on[rank], threads, folder, packed))
            for link in links:
                link.receive()  # it is ready
            team.meet(on[0], folder)
            yield team
            team.tell(None)
        except BaseException:
            for link in links:
                link.kill()
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            for link in links:
                link.close()


def follow(fd: int) -> None:
    """What the other processes do until there are no more steps, or nobody who leads."""
    link = Link(Connection(fd))
    try:
        rank, size, device, threads, folder, packed = link.receive()
        torch.set_num_threads(threads)
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        job: Job = pickle.loads(packed)
        learner = job.make(ctx=replace(job.ctx, device=device))
        link.send(True)
        team = Team(rank, size, (link,))
        team.meet(device, folder)
        _steps(team, learner, job, device)
        dist.destroy_process_group()
    except BaseException as error:
        with suppress(OSError):
            link.pipe.send(f"{type(error).__name__}: {error}".partition("\n")[0])
        os._exit(1)


def _steps(team: Team, learner: Learner, job: Job, device: str) -> None:
    trained = [p for group in learner.groups() for p in group["params"]]
    batches = None
    while (order := team.links[0].receive()) is not None:
        step, share = order
        if batches is None:
            batches = stream(job.rows, job.batch, job.ctx.seed, step, learner.slots)
        team.hand_out(trained)
        with autocast(device):
            loss = learner.loss(team.part(next(batches), learner.slots), share, team)
        team.backward(loss, trained)
