"""Start and end the processes that train one model on all GPUs of this machine.

At every step, the main process broadcasts the weights, all processes compute the gradient of
their share of the batch, and the main process updates the weights. Only the main process has
the clock, the checks and the checkpoints. The workers store nothing.

No library fits, for these reasons:

- torchrun and accelerate start a whole script in every process, but a pass runs in the middle
  of a script;
- `torch.multiprocessing.spawn` runs the user's script again, the whole script if it has no
  `if __name__ == "__main__"`;
- a forked process cannot use CUDA.

So a worker is a new interpreter. torch.distributed connects the processes.
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
"""Longest time to wait for a process to end by itself."""


@dataclass(frozen=True)
class ParallelJob:
    """The data that every process needs to train."""

    make: LearnerFactory
    rows: Encoded
    batch: int
    ctx: Context

    def packed(self) -> bytes:
        """Pickle the job without the parts that only the main process needs."""
        ctx = replace(self.ctx, train=None, target=None, workload=(), progress=Progress())
        return pickle.dumps(replace(self, ctx=replace(ctx, store=Store(), cache=Store())))


@dataclass(frozen=True, eq=False)
class Worker:
    """A worker process, seen from the main process."""

    process: Popen[bytes]
    device: str
    error: Path
    """The file to which the worker writes its error message."""

    def why_ended(self, wait_s: float) -> str | None:
        """Wait up to `wait_s`; return why the process ended, or None if it still runs."""
        try:
            code = self.process.wait(wait_s)
        except TimeoutExpired:
            return None
        said = self.error.read_text(encoding="utf-8") if self.error.exists() else ""
        return f"ended: {said}" if said else f"ended with code {code}"

    def close(self) -> None:
        """Wait for the process to end, then kill it if it still runs."""
        if self.process.stdin:
            self.process.stdin.close()
        self.why_ended(GRACE_S)
        self.process.kill()
        self.process.wait()


def devices(device: str) -> tuple[str, ...]:
    """The devices to train on: all GPUs for `cuda`, else only the given device."""
    if device != "cuda" or not dist.is_nccl_available() or dist.is_initialized():
        return (device,)
    here = torch.cuda.current_device()
    others = (i for i in range(torch.cuda.device_count()) if i != here)
    return (device, *(f"cuda:{i}" for i in others))


@contextmanager
def processes(job: ParallelJob | None) -> Iterator[DataParallel]:
    """Start a worker for each further device; end them when the block ends.

    Args:
        job: the data for the workers; None = train in this process alone.

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
    """Start a new interpreter that runs `work`, with the import path of this interpreter.

    Args:
        folder: contains the job; all processes share it.
        rank: the worker's rank, from 1 on.
        device: the worker's device, for messages.
        level: level of progress messages. The worker's output is shown from level 2 on.
    """
    paths = os.pathsep.join(str(Path(x).absolute()) for x in sys.path)
    process = Popen(
        [sys.executable, "-P", "-c", CODE.format(folder, rank)],
        env=os.environ | {"PYTHONPATH": paths},
        stdin=PIPE,  # it closes whenever this process ends, also by a crash
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
    """Make the error that names the lost worker and the reason.

    A worker that ended by itself is named before workers that ended because of it.
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
