"""The scheduler: workers compute the items that the search will need next.

Workers only fill the store in advance, and the search never reads results that it does not
need. So the result and the order of trials.jsonl are the same as in a serial run. On
processors of the same kind, results are equal to the last bit. Versions of libraries are
compared before the work starts; differences in rounding cannot be checked.
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
"""Largest number of items to predict. Each predicted item takes replays of the search."""


class Scheduler:
    """Offers `trial` and `certify` to a search, while workers compute later items."""

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
        """Run the search. No worker is busy when this method returns or raises."""
        try:
            return self._search(self.trial, self.certify, out_of_time)
        finally:
            self._stop()

    def trial(self, pipeline: Pipeline) -> Trial:
        """See `Evaluator.trial`."""
        self._settle(WorkItem("trial", pipeline))
        return self._evaluator.trial(pipeline)

    def certify(self, pipeline: Pipeline, confidence: float) -> Certificate:
        """See `Evaluator.certify`."""
        self._settle(WorkItem("proof", pipeline))
        proof = self._evaluator.certify(pipeline, self._limit, confidence)
        self._proofs[pipeline] = proof
        return proof

    def _settle(self, asked: WorkItem) -> None:
        """Wait until an item is in the store, or until this process must compute it.

        In the second case all workers are stopped, because the item may include timing.
        """
        while not self._done(asked) and asked not in self._here:
            self._fill(asked)
            if not self._running:
                break
            self._collect()
        if self._done(asked):
            self._fill(None)  # workers continue while this process certifies
        else:
            self._stop()

    def _fill(self, asked: WorkItem | None) -> None:
        """Start the nearest items on free workers.

        A running item may still be needed. It is cancelled only if the search waits for
        another item and no worker is free.
        """
        slots = self._cluster.slots()
        count = min(2 * slots, MOST_AHEAD)
        found = items_ahead(self._search, self._tried, self._proofs, self._limit, count)
        # With a time limit, the search may need an item that the replay did not find.
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
            # Facts come last: they mark the entries that they describe as complete.
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
    """Run a search, with or without workers. Workers have ended when the function returns."""
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
    """Number of threads of every trial, the same on every machine.

    The number is stored for resumed runs, because the last bit of a sum of floats depends on
    it.
    """

    def decide() -> dict[str, int]:
        cores = evaluator.ctx.threads
        if workers.address is None:
            return {"trial": workers.threads(cores)}
        with ray_cluster.connected(workers):
            return {"trial": min(cores, ray_cluster.smallest_machine())}

    return int(evaluator.ctx.store.json("threads", decide)["trial"])
