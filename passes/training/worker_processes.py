"""Start and end the processes that train one model on all GPUs of this machine.

The main process leads. At every step it broadcasts the weights, all processes compute the
gradient of their share of the batch, and the main process takes the step. The clock, the
checks and the checkpoints are in the main process; the workers keep nothing.

Why not a library: torchrun and accelerate start a whole script in every process, while a pass
is in the middle of one; `torch.multiprocessing.spawn` runs the user's script again, all of it
where it has no `if __name__ == "__main__"`; a fork cannot use CUDA. So a worker is a new
interpreter, and torch.distributed does the rest.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from tempfile import TemporaryDirectory
from threading import Thread

import torch
import torch.distributed as dist

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.base.errors import LostError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.pipeline.context import Context

from .data_parallel import ALONE, STOP, TIMEOUT_S, DataParallel
from .learner import Learner, LearnerFactory
from .row_order import stream

CODE = "from prumux.passes.training.worker_processes import work; work({!r}, {})"
GRACE_S = 5.0
"""Longest wait for a process to end once it should."""


@dataclass(frozen=True)
class ParallelJob:
    """The data that every process needs to train."""

    make: LearnerFactory
    rows: Encoded
    batch: int
    ctx: Context

    def packed(self) -> bytes:
        """A pickle without the parts that only the main process needs."""
        ctx = replace(self.ctx, train=None, target=None, workload=(), progress=Progress())
        return pickle.dumps(replace(self, ctx=replace(ctx, store=Store(), cache=Store())))


@dataclass(frozen=True, eq=False)
class Worker:
    """A worker process, seen from the main process."""

    process: Popen[bytes]
    device: str
    error: Path
    """The file that gets the worker's error message."""

    def why_ended(self, wait_s: float) -> str | None:
        """The reason why the process ended, after waiting for that; None if it still runs."""
        try:
            code = self.process.wait(wait_s)
        except TimeoutExpired:
            return None
        said = self.error.read_text(encoding="utf-8") if self.error.exists() else ""
        return f"ended: {said}" if said else f"ended with code {code}"

    def close(self) -> None:
        """Return when the process has ended, killed if it does not end by itself."""
        if self.process.stdin:
            self.process.stdin.close()
        self.why_ended(GRACE_S)
        self.process.kill()
        self.process.wait()


def devices(device: str) -> tuple[str, ...]:
    """The devices to train on: all GPUs for `cuda`, else the given device alone."""
    if device != "cuda" or not dist.is_nccl_available() or dist.is_initialized():
        return (device,)
    here = torch.cuda.current_device()
    others = (i for i in range(torch.cuda.device_count()) if i != here)
    return (device, *(f"cuda:{i}" for i in others))


@contextmanager
def processes(job: ParallelJob | None) -> Iterator[DataParallel]:
    """Start a worker for each further device; end them when the block ends.

    Args:
        job: what to train; None = in this process alone.

    Raises:
        LostError: a worker failed or died.
    """
    on = devices(job.ctx.device) if job else ()
    if job is None or len(on) == 1:
        yield ALONE
        return
    workers: list[Worker] = []
    with TemporaryDirectory(prefix="prumux-") as folder:
        order = (job.packed(), on, torch.get_num_threads())
        Path(folder, "job").write_bytes(pickle.dumps(order))
        try:
            for rank, device in enumerate(on[1:], 1):
                workers.append(started(folder, rank, device, job.ctx.progress.level))
            _wait_until_ready(workers, folder)
            parallel = DataParallel(0, len(on), partial(_lost, workers))
            parallel.connect(on[0], folder)
            yield parallel
            parallel.stop()
        except BaseException:
            for worker in workers:
                worker.process.kill()
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            for worker in workers:
                worker.close()


def started(folder: str, rank: int, device: str, level: int) -> Worker:
    """A new interpreter that imports what this one can and runs `work`.

    Args:
        folder: holds the job; shared by all processes.
        rank: the worker's, from 1 on.
        device: where it trains, for messages.
        level: of the progress; what the worker prints is shown from 2 on only.
    """
    paths = os.pathsep.join(str(Path(x).absolute()) for x in sys.path)
    process = Popen(
        [sys.executable, "-P", "-c", CODE.format(folder, rank)],
        env=os.environ | {"PYTHONPATH": paths},
        stdin=PIPE,  # it closes when this process ends, however that happens
        stdout=DEVNULL,
        stderr=None if level >= 2 else DEVNULL,
        start_new_session=True,  # Ctrl-C is for the main process, which ends the workers
    )
    return Worker(process, device, Path(folder, f"error-{rank}"))


def _wait_until_ready(workers: Sequence[Worker], folder: str) -> None:
    """Return when every worker has built its learner."""
    end = time.monotonic() + TIMEOUT_S
    for rank, worker in enumerate(workers, 1):
        while not Path(folder, f"ready-{rank}").exists():
            if why := worker.why_ended(0.05):
                raise _lost_error(worker, why)
            if time.monotonic() > end:
                raise _lost_error(worker, f"has not started within {TIMEOUT_S:g} s")


def _lost(workers: Sequence[Worker], error: Exception) -> LostError:
    """The error that says which worker is gone, and why.

    Workers that ended only because they lost another process are named last.
    """
    found = [(x, why) for x in workers if (why := x.why_ended(GRACE_S))]
    found.sort(key=lambda x: LostError.__name__ in x[1])
    return _lost_error(*(found or [(workers[0], str(error).partition("\n")[0])])[0])


def _lost_error(worker: Worker, why: str) -> LostError:
    return LostError(
        f"training on several devices stopped: the process for {worker.device} {why:.200}\n"
        "repeat the command with --resume to go on; --device cuda:0 trains on one GPU"
    )


def work(folder: str, rank: int) -> None:
    """Run a worker: compute gradients until the main process stops or is gone."""
    Thread(target=_end_with_the_main_process, daemon=True).start()
    try:
        packed, on, threads = pickle.loads(Path(folder, "job").read_bytes())
        torch.set_num_threads(threads)
        if on[rank].startswith("cuda"):
            torch.cuda.set_device(on[rank])
        job: ParallelJob = pickle.loads(packed)
        learner = job.make(ctx=replace(job.ctx, device=on[rank]))
        Path(folder, f"ready-{rank}").touch()
        parallel = DataParallel(rank, len(on))
        parallel.connect(on[rank], folder)
        _steps(parallel, learner, job, on[rank])
        dist.destroy_process_group()
    except BaseException as error:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        with suppress(OSError):
            Path(folder, f"error-{rank}").write_text(text, encoding="utf-8")
        os._exit(1)


def _end_with_the_main_process() -> None:
    """Exit when the other end of stdin closes."""
    os.read(0, 1)
    os._exit(1)


def _steps(parallel: DataParallel, learner: Learner, job: ParallelJob, device: str) -> None:
    trained = [p for group in learner.groups() for p in group["params"]]
    batches = None
    while True:
        step, progress = parallel.share_step(0, 0.0, trained)
        if step == STOP:
            return
        if batches is None:
            batches = stream(job.rows, job.batch, job.ctx.seed, step, learner.slots)
        with autocast(device):
            share = parallel.part(next(batches), learner.slots)
            loss = learner.loss(share, progress, parallel)
        parallel.backward(loss, trained)
