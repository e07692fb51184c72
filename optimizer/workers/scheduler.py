"""Keeps workers busy with what the search will ask for next, and waits for what it asks.

All is as if nobody helped, the order of trials.jsonl included: what workers find is put into
the store, and what the search does not ask for is not looked at. To the last bit this holds
where workers run on the same kind of processor; versions are compared, rounding cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.bisection import Found, Trial
from prumux.optimizer.search.certificate import Certificate
from prumux.optimizer.search.evaluator import Bench

from .payload import needed
from .speculation import Job, Search, jobs_ahead
from .workers import Workers

Files = Mapping[str, bytes]
"""Entries of a store, by file name."""
MOST_AHEAD = 64
"""Jobs that are looked for at once: looking takes time too."""


class Cluster(Protocol):
    """Where jobs run."""

    def slots(self) -> int:
        """How many can run at once now; 0 = none any more."""

    def start(self, job: Job, files: Mapping[str, Path]) -> Hashable:
        """Begin a job with these entries of the store; returns a handle."""

    def wait(self, handles: Iterable[Hashable]) -> Mapping[Hashable, Files | str]:
        """Wait until some have ended: new entries of the store, or why there are none."""

    def cancel(self, handle: Hashable) -> None:
        """End a job soon."""

    def drain(self) -> None:
        """Return when everything that was cancelled has ended."""


class Crew:
    """A `trial` and a `prove` for a search, which workers run ahead of."""

    def __init__(self, search: Search, bench: Bench, limit: float, cluster: Cluster) -> None:
        self._search, self._bench = search, bench
        self._limit, self._cluster = limit, cluster
        self._running: dict[Job, Hashable] = {}
        self._here: set[Job] = set()
        self._known: dict[Pipeline, Trial | PassError] = {}
        self._proofs: dict[Pipeline, Certificate] = {}

    def run(self, late: Callable[[Pipeline], bool]) -> Found:
        """Search. At the end, whatever happens, no worker is busy."""
        try:
            return self._search(self.trial, self.prove, late)
        finally:
            self._stop()

    def trial(self, pipeline: Pipeline) -> Trial:
        """As `Bench.trial`."""
        self._settle(Job("trial", pipeline))
        return self._bench.trial(pipeline)

    def prove(self, pipeline: Pipeline, confidence: float) -> Certificate:
        """As `Bench.certify`."""
        self._settle(Job("proof", pipeline))
        proof = self._bench.certify(pipeline, self._limit, confidence)
        self._proofs[pipeline] = proof
        return proof

    def _settle(self, asked: Job) -> None:
        """Return when the answer is in the store, or when it is to be found in this process.

        In the latter case nobody else is busy: it may be something that is timed.
        """
        while not self._done(asked) and asked not in self._here:
            self._fill(asked)
            if not self._running:
                break
            self._collect()
        if self._done(asked):
            self._fill(None)  # they go on while this process certifies
        else:
            self._stop()

    def _fill(self, asked: Job | None) -> None:
        """Give every free worker the nearest job.

        What runs is ended only where the search waits for something else: it may be asked
        for yet, and has been at it for a while.
        """
        slots = self._cluster.slots()
        count = min(2 * slots, MOST_AHEAD)
        found = jobs_ahead(self._search, self._tried, self._proofs, self._limit, count)
        # With a time limit a search may ask for something else.
        wanted = list(dict.fromkeys([asked, *found] if asked else found))
        far = {job: i for i, job in enumerate(wanted)}
        for job in wanted:
            if not self._startable(job):
                continue
            if len(self._running) >= slots:
                if job != asked or not self._running:
                    break
                self._cancel(max(self._running, key=lambda x: far.get(x, len(far))))
            files = needed(self._bench, job.pipeline)
            self._running[job] = self._cluster.start(job, files)

    def _startable(self, job: Job) -> bool:
        if job in self._running or job in self._here or self._done(job):
            return False
        if job.kind == "proof":
            return isinstance(self._tried(job.pipeline), Trial)
        others = [x.pipeline for x in self._running if x.kind == "trial"]
        return not any(self._bench.shares_training(job.pipeline, x) for x in others)

    def _collect(self) -> None:
        """Wait for some to end and store what they found."""
        jobs = {handle: job for job, handle in self._running.items()}
        for handle, outcome in self._cluster.wait(jobs).items():
            job = jobs[handle]
            del self._running[job]
            if isinstance(outcome, str):
                self._here.add(job)
                self._bench.ctx.progress.say(f"{job} is left to this process: {outcome}", 2)
                continue
            # Facts come last, as they say that what they speak of is there.
            for name in sorted(outcome, key=lambda x: (x.endswith(".json"), x)):
                self._bench.ctx.store.add(name, outcome[name])
            if not self._done(job):
                self._here.add(job)

    def _done(self, job: Job) -> bool:
        if job.kind == "trial":
            return self._tried(job.pipeline) is not None
        return self._bench.answered(job.pipeline)

    def _tried(self, pipeline: Pipeline) -> Trial | PassError | None:
        if pipeline not in self._known and (found := self._bench.tried(pipeline)) is not None:
            self._known[pipeline] = found
        return self._known.get(pipeline)

    def _cancel(self, job: Job) -> None:
        self._cluster.cancel(self._running.pop(job))

    def _stop(self) -> None:
        for job in list(self._running):
            self._cancel(job)
        self._cluster.drain()


def searched(
    search: Search,
    bench: Bench,
    limit: float,
    late: Callable[[Pipeline], bool],
    workers: Workers,
) -> Found:
    """Search, with workers ahead of it if there are any; they are gone when it ends."""
    if workers.here_only:
        return search(bench.trial, lambda x, sure: bench.certify(x, limit, sure), late)
    import torch

    from .ray_cluster import RayCluster, connected

    bench.dense_score("select")  # known here, it need not be computed by each of them
    threads = torch.get_num_threads()
    with connected(workers):
        cluster = RayCluster(bench, workers, threads)
        bench.ctx.progress.say(
            f"{cluster.slots()} workers, {threads} threads each, build candidates ahead"
        )
        return Crew(search, bench, limit, cluster).run(late)


def trial_threads(bench: Bench, workers: Workers) -> int:
    """Threads of every trial, wherever it runs; a run that is resumed goes on with them.

    Sums of floats depend on them in the last bit, so this is what makes results the same.
    """

    def decide() -> dict[str, int]:
        cores = bench.ctx.threads
        if workers.address is None:
            return {"trial": workers.threads(cores)}
        from .ray_cluster import connected, smallest_machine

        with connected(workers):
            return {"trial": min(cores, smallest_machine())}

    return int(bench.ctx.store.json("threads", decide)["trial"])
