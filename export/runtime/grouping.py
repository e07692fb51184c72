"""Run rows on an engine, with rows of similar length and of concurrent callers together."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded, block
from prumux.optimizer.model.row_groups import RowLogits, answered_in_order, grouped
from prumux.optimizer.pipeline.target import Engine

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PredictionJob:
    """The rows of one caller, and the options of the call."""

    encoded: Encoded
    batch_size: int = 32
    copies: int = 1
    """Number of groups in which each row runs. A row's logits are the mean over its groups."""
    tenants: tuple[Hashable, ...] | None = None
    """The tenant of each row. Rows of two tenants never share a forward pass."""


def answer(engine: Engine, slots: int, job: PredictionJob) -> RowLogits:
    """Compute the logits of a job without padding: float32 [N, C], or [T, C] for each row."""
    coded = job.encoded

    def prepare(order: NDArray[np.int64]) -> Callable[[int, int], Floats]:
        sorted_rows = coded.take(order)
        return lambda start, stop: engine.run(block(sorted_rows, start, stop))

    groups = grouped(coded.lengths, slots, job.copies, job.tenants)
    return answered_in_order(prepare, groups, coded.lengths, job.batch_size)


@dataclass(frozen=True, eq=False)
class DirectRunner:
    """Runs each job alone, in the caller's thread."""

    engine: Engine
    slots: int

    def run(self, job: PredictionJob) -> RowLogits:
        """See `answer`."""
        return answer(self.engine, self.slots, job)

    def close(self) -> None:
        """Do nothing: there is no thread to end."""


Waiting = tuple[PredictionJob, "Future[RowLogits]"]
Jobs = queue.SimpleQueue["Waiting | None"]
"""Waiting jobs; None tells the thread to end."""


@dataclass(eq=False)
class BatchingRunner:
    """Runs jobs of concurrent callers together, so that few slots stay empty.

    A thread takes the first job, waits up to `max_wait_ms` milliseconds for other jobs until
    their rows fill a batch, and runs them in one call. If the engine fails, all callers of
    that call get the error.
    """

    engine: Engine
    slots: int
    max_wait_ms: float
    _lock: Any = field(default_factory=threading.Lock, init=False)
    _jobs: Jobs = field(default_factory=queue.SimpleQueue, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def run(self, job: PredictionJob) -> RowLogits:
        """See `answer`. Blocks until the job is done."""
        if not len(job.encoded):
            return []
        with self._lock:
            # A forked child process does not have the thread of its parent.
            if self._thread is None or not self._thread.is_alive():
                self._jobs = queue.SimpleQueue()
                # If a program never calls `close`, a daemon thread still lets it end.
                self._thread = threading.Thread(
                    target=self._serve, args=(self._jobs,), daemon=True
                )
                self._thread.start()
            waiting: Waiting = (job, Future())
            self._jobs.put(waiting)
        return waiting[1].result()

    def close(self) -> None:
        """Answer all waiting jobs, then end the thread. A later job starts a new thread."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._jobs.put(None)
        if thread is not None:
            thread.join()

    def _serve(self, jobs: Jobs) -> None:
        going = True
        while going:
            taken, going = self._collect(jobs)
            alike: dict[tuple[int, int], list[Waiting]] = {}
            for waiting in taken:
                alike.setdefault((waiting[0].batch_size, waiting[0].copies), []).append(
                    waiting
                )
            for together in alike.values():
                self._answer(together)

    def _collect(self, jobs: Jobs) -> tuple[list[Waiting], bool]:
        """The jobs of one call, and False if the thread should end after it."""
        first = jobs.get()
        if first is None:
            return [], False
        taken, rows = [first], len(first[0].encoded)
        until = time.monotonic() + self.max_wait_ms / 1000
        while rows < first[0].batch_size:
            try:
                more = jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if more is None:
                return taken, False
            taken.append(more)
            rows += len(more[0].encoded)
        return taken, True

    def _answer(self, together: Sequence[Waiting]) -> None:
        try:
            found = answer(self.engine, self.slots, joined([job for job, _ in together]))
        except BaseException as error:  # every error goes to the callers
            for _, future in together:
                future.set_exception(error)
            return
        start = 0
        for job, future in together:
            future.set_result(found[start : start + len(job.encoded)])
            start += len(job.encoded)


def joined(jobs: Sequence[PredictionJob]) -> PredictionJob:
    """Join jobs with equal options into one, in order."""
    first = jobs[0].encoded
    types = [x for job in jobs if (x := job.encoded.types) is not None]
    encoded = Encoded(
        ids=Ragged.joined([job.encoded.ids for job in jobs]),
        types=Ragged.joined(types) if types else None,
        labels=None,
        pad_id=first.pad_id,
    )
    owners = tuple(
        owner for job in jobs for owner in job.tenants or (None,) * len(job.encoded)
    )
    return PredictionJob(encoded, jobs[0].batch_size, jobs[0].copies, owners)
