"""The scheduler: workers compute ahead of the search what it will ask for next.

Workers only pre-fill the store; the result equals a serial run, the order of trials.jsonl
included, because unasked results are never read. It is equal to the last bit on processors of
the same kind; versions are compared, rounding cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.bisection import SearchResult, Trial
from prumux.optimizer.search.evaluator import Evaluator

from . import ray_cluster
from .payload import needed
from .ray_cluster import RayCluster
from .speculation import Search, WorkItem, items_ahead
from .workers import Workers

MOST_AHEAD = 64
"""Items that are looked for at once, because looking takes time too."""


class Scheduler:
    """A `trial` and a `certify` for a search; workers run ahead of both."""

    def __init__(
        self, search: Search, evaluator: Evaluator, limit: float, cluster: RayCluster
    ) -> None:
        self._search, self._evaluator = search, evaluator
        self._limit, self._cluster = limit, cluster
        self._running: dict[WorkItem, Hashable] = {}
        self._here: set[WorkItem] = set()
        self._known: dict[Pipeline, Trial | PassError] = {}
        self._proofs: dict[Pipeline, Certificate] = {}

    def run(self, out_of_time: Callable[[Pipeline], bool]) -> SearchResult:
        """Search. When this returns or raises, no worker is busy."""
        try:
            return self._search(self.trial, self.certify, out_of_time)
        finally:
            self._stop()

    def trial(self, pipeline: Pipeline) -> Trial:
        """As `Evaluator.trial`."""
        self._settle(WorkItem("trial", pipeline))
        return self._evaluator.trial(pipeline)

    def certify(self, pipeline: Pipeline, confidence: float) -> Certificate:
        """As `Evaluator.certify`."""
        self._settle(WorkItem("proof", pipeline))
        proof = self._evaluator.certify(pipeline, self._limit, confidence)
        self._proofs[pipeline] = proof
        return proof

    def _settle(self, asked: WorkItem) -> None:
        """Return when the item is in the store, or when this process has to do it.

        In the latter case no worker is busy, because the item may time something.
        """
        while not self._done(asked) and asked not in self._here:
            self._fill(asked)
            if not self._running:
                break
            self._collect()
        if self._done(asked):
            self._fill(None)  # workers go on while this process certifies
        else:
            self._stop()

    def _fill(self, asked: WorkItem | None) -> None:
        """Give every free worker the nearest item.

        A running item is cancelled only if the search waits for another one and no worker is
        free, because its result may still be needed.
        """
        slots = self._cluster.slots()
        count = min(2 * slots, MOST_AHEAD)
        found = items_ahead(self._search, self._tried, self._proofs, self._limit, count)
        # With a time limit a search may ask for an item that the replay did not find.
        wanted = list(dict.fromkeys([asked, *found] if asked else found))
        far = {item: i for i, item in enumerate(wanted)}
        for item in wanted:
            if not self._startable(item):
                continue
            if len(self._running) >= slots:
                if item != asked or not self._running:
                    break
                self._cancel(max(self._running, key=lambda x: far.get(x, len(far))))
            files = needed(self._evaluator, item.pipeline)
            self._running[item] = self._cluster.start(item, files)

    def _startable(self, item: WorkItem) -> bool:
        if item in self._running or item in self._here or self._done(item):
            return False
        if item.kind == "proof":
            return isinstance(self._tried(item.pipeline), Trial)
        others = [x.pipeline for x in self._running if x.kind == "trial"]
        return not any(
            self._evaluator.builder.shares_training(item.pipeline, x) for x in others
        )

    def _collect(self) -> None:
        """Wait for some items to end and store their results."""
        items = {handle: item for item, handle in self._running.items()}
        for handle, outcome in self._cluster.wait(items).items():
            item = items[handle]
            del self._running[item]
            if isinstance(outcome, str):
                self._here.add(item)
                self._evaluator.ctx.progress.say(
                    f"{item} is left to this process: {outcome}", 2
                )
                continue
            # Facts come last, as the sign that the entries they describe are there.
            for name in sorted(outcome, key=lambda x: (x.endswith(".json"), x)):
                self._evaluator.ctx.store.add(name, outcome[name])
            if not self._done(item):
                self._here.add(item)

    def _done(self, item: WorkItem) -> bool:
        if item.kind == "trial":
            return self._tried(item.pipeline) is not None
        return self._evaluator.has_certified_predictions(item.pipeline)

    def _tried(self, pipeline: Pipeline) -> Trial | PassError | None:
        found = self._known.get(pipeline) or self._evaluator.tried(pipeline)
        if found is not None:
            self._known[pipeline] = found
        return found

    def _cancel(self, item: WorkItem) -> None:
        self._cluster.cancel(self._running.pop(item))

    def _stop(self) -> None:
        for item in list(self._running):
            self._cancel(item)
        self._cluster.drain()


def search_with_workers(
    search: Search,
    evaluator: Evaluator,
    limit: float,
    out_of_time: Callable[[Pipeline], bool],
    workers: Workers,
) -> SearchResult:
    """Search, with workers ahead of it if there are any; they have ended when it returns."""
    if workers.here_only:
        return search(
            evaluator.trial, lambda x, sure: evaluator.certify(x, limit, sure), out_of_time
        )
    import torch

    evaluator.dense_score("select")  # computed once here, not by each worker
    threads = torch.get_num_threads()
    with ray_cluster.connected(workers):
        cluster = ray_cluster.RayCluster(evaluator, workers, threads)
        evaluator.ctx.progress.say(
            f"{cluster.slots()} workers, {threads} threads each, build candidates ahead"
        )
        return Scheduler(search, evaluator, limit, cluster).run(out_of_time)


def trial_threads(evaluator: Evaluator, workers: Workers) -> int:
    """Threads of every trial, on every machine; stored, so that a resumed run uses the same.

    Sums of floats depend on the number of threads in the last bit.
    """

    def decide() -> dict[str, int]:
        cores = evaluator.ctx.threads
        if workers.address is None:
            return {"trial": workers.threads(cores)}
        with ray_cluster.connected(workers):
            return {"trial": min(cores, ray_cluster.smallest_machine())}

    return int(evaluator.ctx.store.json("threads", decide)["trial"])
