"""Run work items on Ray: each item is a Ray task with a number of processors.

If a process or machine dies, Ray repeats its tasks on other machines. If Ray gives a task up
or finds no machine for it, the caller does the work itself.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import MissingError
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.search.evaluator import Evaluator

from .payload import Files, Host, packed, work
from .speculation import WorkItem
from .workers import Workers

RETRIES = 2
"""Number of times that Ray repeats a task whose process or machine died, at most."""
LOOK_S = 5.0
"""Seconds between two checks that a machine is alive."""
DRAIN_S = 20.0
"""Seconds after which the process of a cancelled task is killed."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_task_oom_retries": str(RETRIES),  # Ray's default has no limit
}
"""Environment variables for Ray if this process starts it."""


@contextmanager
def connected(workers: Workers) -> Iterator[None]:
    """Start Ray on this machine, or connect to a cluster, for the duration of the block.

    An existing connection of this process is used and stays open.

    Raises:
        MissingError: Ray does not start, or the cluster refuses the connection.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if workers.address is None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        options |= {"num_cpus": max(workers.count, cpu_threads()), "include_dashboard": False}
    try:
        with _own_signals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray warns of a time-out, then tries again
            ray.init(workers.address or "local", **options)
    except Exception as error:  # Ray's errors have no common class
        raise MissingError(
            f"Ray cannot be used, {workers.address or 'started on this machine'}: "
            f"{_first_line(error)}\ninstall the same versions there, or leave --workers out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


class RayCluster:
    """A Ray cluster that runs work items as Ray tasks."""

    def __init__(self, evaluator: Evaluator, workers: Workers, threads: int) -> None:
        import ray

        self._most = workers.count if workers.address is None else None
        self._cpus, self._gpus = threads, float(evaluator.ctx.device == "cuda")
        self._host = Host.of(evaluator, threads)
        self._evaluator = ray.put(packed(evaluator))
        self._task: Any = ray.remote(_work).options(
            num_cpus=threads, num_gpus=self._gpus, max_retries=RETRIES
        )
        self._shared: dict[str, Any] = {}
        self._cancelled: list[Any] = []
        self._lost = False

    def slots(self) -> int:
        """Number of items that can run at once on the machines that are alive; 0 = none."""
        if self._lost:
            return 0
        fit = sum(self._fits(node) for node in _nodes())
        return fit if self._most is None else min(fit, self._most)

    def start(self, item: WorkItem, files: Mapping[str, Path]) -> Hashable:
        """Start an item with these store entries, and return a handle."""
        import ray

        sent = {}
        for name, path in files.items():
            whole = name.startswith("model-")  # it is large, and only this candidate needs it
            if whole or name not in self._shared:
                put = ray.put(path.read_bytes())
                if not whole:
                    self._shared[name] = put
            sent[name] = put if whole else self._shared[name]
        handle: Hashable = self._task.remote(
            self._evaluator, item.kind, str(item.pipeline), sent, self._host
        )
        return handle

    def wait(self, handles: Iterable[Hashable]) -> Mapping[Hashable, Files | str]:
        """Wait until some items have ended.

        Returns:
            By handle, the new store entries, or the reason why there are none.
        """
        import ray

        refs = list(handles)
        try:
            while True:
                ended, _ = ray.wait(refs, num_returns=1, timeout=LOOK_S)
                if ended:
                    return {ref: _outcome(ref) for ref in ended}
                if not self.slots():
                    why = f"no machine of the cluster has {self._cpus} processors left"
                    for ref in refs:
                        self.cancel(ref)
                    return dict.fromkeys(refs, why)
        except Exception as error:  # the connection is lost
            self._lost = True
            return dict.fromkeys(refs, _first_line(error))

    def cancel(self, handle: Hashable) -> None:
        """Ask Ray to end an item, without waiting."""
        import ray

        ref: Any = handle
        self._cancelled.append(ref)
        self._quietly(lambda: ray.cancel(ref))

    def drain(self) -> None:
        """Wait until every cancelled item has ended; kill items that do not end in time."""
        import ray

        def ended(seconds: float) -> list[Any]:
            refs = self._cancelled
            return list(ray.wait(refs, num_returns=len(refs), timeout=seconds)[1])

        def end() -> None:
            for ref in ended(DRAIN_S):
                ray.cancel(ref, force=True)
            ended(DRAIN_S)

        if self._cancelled and not self._lost:
            self._quietly(end)
        self._cancelled.clear()

    def _fits(self, node: Mapping[str, Any]) -> int:
        has = node["Resources"]
        fit = int(has.get("CPU", 0) // self._cpus)
        return min(fit, int(has.get("GPU", 0) // self._gpus)) if self._gpus else fit

    def _quietly(self, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception:  # the connection is lost, and so are its tasks
            self._lost = True


def smallest_machine() -> int:
    """Number of processors of the smallest machine; 1 if there is no machine yet."""
    cpus = (int(node["Resources"].get("CPU", 0)) for node in _nodes())
    return min((x for x in cpus if x), default=1)


def _work(
    evaluator: Evaluator, kind: str, text: str, files: Mapping[str, Any], host: Host
) -> Files | str:
    """The function of the Ray task, which reads its files from Ray's object store."""
    import ray

    return work(evaluator, kind, text, {k: ray.get(x) for k, x in files.items()}, host)


def _outcome(ref: Any) -> Files | str:
    import ray

    try:
        found: Files | str = ray.get(ref)
    except Exception as error:  # the task raised it, or its process died
        return _first_line(error)
    return found


def _nodes() -> list[dict[str, Any]]:
    import ray

    nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    return [node for node in nodes() if node["Alive"]]


def _first_line(error: Exception) -> str:
    lines = [x for x in str(error).splitlines() if x.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]:.200}"


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore this process's SIGTERM handler after the block, because Ray replaces it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
