"""Find the graph and the batch size with which each model is fastest.

A comparison is fair only if each model runs in its fastest form. Short runs time every graph
of every model at every batch size. `run.py` then times the fastest graph of each model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.errors import GateError, PrumuxError
from prumux.optimizer.model.row_groups import batch_rows
from prumux.optimizer.timing.interleave import interleave, wall_ms

from .engines import OpenedModel
from .run import Inputs, try_all

BATCHES = {"cpu": (8, 16, 32, 64), "gpu": (8, 32, 64, 128, 256, 512)}
"""Batch sizes to try if the user gives none."""
LEAST_MS = 40.0
"""Time for which each graph repeats its run in a round."""
ROUNDS = (2, 3)
"""Number of rounds of all graphs, and then of the graphs near the best graph."""
NEAR = 1.15
"""Graphs slower than this multiple of the best time per row do not run in the last rounds."""
NEEDED = ("", "plain", "eager")
"""Names of the graphs that must run. Other graphs are left out if they fail."""
InputsOf = Callable[[OpenedModel, int], Sequence[Inputs]]


@dataclass(frozen=True)
class Probe:
    """The result of short runs of a graph at one batch size."""

    name: str
    graph: str
    batch: int
    rows_per_second: float
    """The throughput of the best round."""


@dataclass(eq=False)
class _Cell:
    """A graph at one batch size, and its best time so far."""

    model: int
    opened: OpenedModel
    batch: int
    inputs: Sequence[Inputs]
    row_ms: float = math.inf

    @property
    def rows(self) -> int:
        return sum(len(x["input_ids"]) for x in self.inputs)

    def run(self) -> None:
        for x in self.inputs:
            self.opened.engine.run(x)

    def probe(self) -> Probe:
        return Probe(self.opened.name, self.opened.graph, self.batch, 1000 / self.row_ms)


@dataclass(frozen=True, eq=False)
class Choice:
    """The chosen graph and batch size of a model."""

    opened: OpenedModel
    batch: int
    inputs: Sequence[Inputs]
    row_ms: float
    """The best time per row in the short runs; inf if the graph was not timed."""


@dataclass(frozen=True, eq=False)
class Choices:
    """The results of short runs."""

    cells: tuple[_Cell, ...]
    models: int
    not_run: Mapping[str, str]

    @property
    def probes(self) -> list[Probe]:
        """The results of all timed short runs."""
        return [x.probe() for x in self.cells if x.row_ms < math.inf]

    def best(self) -> list[Choice]:
        """The fastest graph and batch size of each model.

        If the first model runs in several kinds of engine, the fastest engine is first.
        """
        return self._chosen(self.cells)

    def best_at(self, batch: int) -> list[Choice]:
        """The fastest graph of each model at a batch size, in the order of `best`."""
        return self._chosen([x for x in self.cells if x.batch == batch])

    def _chosen(self, cells: Sequence[_Cell]) -> list[Choice]:
        found = [_fastest(x for x in cells if x.model == i) for i in range(self.models)]
        side = found[0].opened.side
        same = [x for x in found if side and x.opened.side == side]
        first = min(same, key=lambda x: x.row_ms, default=found[0])
        return [first, *(x for x in found if x is not first)]


def _fastest(cells: Iterable[_Cell]) -> Choice:
    best = min(cells, key=lambda x: x.row_ms)
    return Choice(replace(best.opened, others=()), best.batch, best.inputs, best.row_ms)


def choose(
    models: Sequence[OpenedModel],
    batches: Sequence[int] | None,
    inputs_of: InputsOf,
    cores: CoreMonitor,
) -> Choices:
    """Time every graph of every model in short runs, at every batch size.

    A model with one graph and one batch size runs once and is not timed, unless it runs in
    several kinds of engine.

    Args:
        models: the models, each with its other graphs.
        batches: batch sizes. None = the usual sizes of the device, rounded to whole groups for
            a multiplexed model.
        inputs_of: the inputs of one round of a model at a batch size.
        cores: waits until threads run on cores near each other, before each run.

    Raises:
        UsageError: a model cannot run one of `batches`.
        GateError: a model's logits are nan or infinite.
    """
    cells, not_run = list[_Cell](), dict[str, str]()
    for i, model in enumerate(models):
        not_run |= {f"{model.name}, {k}": v for k, v in model.not_run.items()}
        for opened in (model, *model.others):
            cells += _cells(i, opened, batches, inputs_of, not_run)
    fixed = batches is not None
    rivals = [x for x in cells if x.opened.side or len(_rivals(x, cells, fixed)) > 1]
    for number, rounds in enumerate(ROUNDS):
        if number:
            near = (NEAR * min(y.row_ms for y in _rivals(x, cells, fixed)) for x in rivals)
            rivals = [x for x, limit in zip(rivals, near, strict=True) if x.row_ms <= limit]
        _time(rivals, rounds, cores)
    return Choices(tuple(cells), len(models), not_run)


def _cells(
    number: int,
    opened: OpenedModel,
    batches: Sequence[int] | None,
    inputs_of: InputsOf,
    not_run: dict[str, str],
) -> list[_Cell]:
    """Run one graph once at each batch size.

    The plain graph must run at every batch size that the user gave.
    """
    found = list[_Cell]()
    for batch in _sizes(opened, batches):
        cell = _Cell(number, opened, batch, inputs_of(opened, batch))
        try:
            try_all([opened], [cell.inputs])
        except GateError:
            raise
        except PrumuxError as error:
            if opened.graph in NEEDED and (batches or not found):
                raise
            what = ", ".join(x for x in (opened.name, opened.graph, f"batch {batch}") if x)
            not_run[what] = str(error).split("\n")[0]
            break
        found.append(cell)
    return found


def _sizes(opened: OpenedModel, batches: Sequence[int] | None) -> Sequence[int]:
    if batches is not None:
        return batches
    on_cpu = opened.engine.describe().get("device", "cpu") == "cpu"
    usual = BATCHES["cpu" if on_cpu else "gpu"]
    return sorted({batch_rows(x, opened.slots) for x in usual})


def _rivals(cell: _Cell, cells: Sequence[_Cell], fixed: bool) -> list[_Cell]:
    """The cells of a cell's model; if `fixed`, only those with the cell's batch size."""
    same = [x for x in cells if x.model == cell.model]
    return [x for x in same if x.batch == cell.batch] if fixed else same


def _time(cells: Sequence[_Cell], rounds: int, cores: CoreMonitor) -> None:
    """Run cells in turn, and store the best time of each."""
    counts = [max(1, round(LEAST_MS / max(wall_ms(x.run), 1e-3))) for x in cells]
    runs = [partial(_repeated, x.run, n) for x, n in zip(cells, counts, strict=True)]
    timings = interleave(runs, rounds, warmup=0, cores=cores)
    for cell, count, timing in zip(cells, counts, timings, strict=True):
        cell.row_ms = min(cell.row_ms, timing.low_ms / (count * cell.rows))


def _repeated(run: Callable[[], None], times: int) -> None:
    for _ in range(times):
        run()
