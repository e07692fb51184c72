"""The measurements of `prumux-bench`: all batch sizes, then the best size of each model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.errors import PrumuxError

from .choose import Choice, Choices
from .power import Meter, meter
from .run import TIMING, Entry

Measure = Callable[..., list[Entry]]
"""The type of `run.measure`."""


@dataclass(eq=False)
class Measured:
    """The measurements of one command."""

    choices: Choices
    batches: Sequence[int] | None
    """Batch sizes at which all models run; None = only each model's own best size."""
    rounds: int
    cores: CoreMonitor
    entries: list[Entry] = field(default_factory=list)
    best: list[Entry] = field(default_factory=list)
    """Entries of each model at its own best batch size. Ratios are against the first model."""
    ran: dict[str, Choice] = field(default_factory=dict)
    """The graph and batch size that were timed last, by model."""
    power: dict[str, str] = field(default_factory=dict)
    """Name of the energy meter by model, or the reason why there is none."""

    def run(
        self, measure: Measure, step: Callable[[], None]
    ) -> KeyboardInterrupt | PrumuxError | None:
        """Measure. An error after the first entry is returned: the caller shows entries first.

        Raises:
            PrumuxError: an error before the first entry.
        """
        try:
            for batch in self.batches or ():
                self.entries += self._timed(measure, self.choices.best_at(batch))
                step()
            if self.batches is None:
                self.entries = self.best = self._timed(measure, self.choices.best())
                step()
            else:
                self.best = self._at_own_batches(measure)
        except (KeyboardInterrupt, PrumuxError) as error:
            if not self.entries:
                raise
            return error
        return None

    def _at_own_batches(self, measure: Measure) -> list[Entry]:
        """Time each model at its fastest batch size, all models in the same rounds."""
        names = dict.fromkeys(x.name for x in self.entries)
        fastest = {
            name: max((x for x in self.entries if x.name == name), key=_rows_per_second)
            for name in names
        }
        sizes = {x.batch for x in fastest.values()}
        if len(sizes) == 1:
            return [x for x in self.entries if x.batch in sizes]
        at = {n: {x.opened.name: x for x in self.choices.best_at(n)} for n in sizes}
        return self._timed(measure, [at[x.batch][x.name] for x in fastest.values()])

    def _timed(self, measure: Measure, chosen: Sequence[Choice]) -> list[Entry]:
        models = [x.opened for x in chosen]
        meters = list[Meter | None]()
        for x in models:
            counter, what = meter(x.engine.describe().get("device", "cpu"))
            meters.append(counter)
            self.power[x.name] = what
        self.ran |= {x.opened.name: x for x in chosen}
        sizes = [x.batch for x in chosen]
        batch = sizes[0] if len(set(sizes)) == 1 else sizes
        inputs = [x.inputs for x in chosen]
        return measure(models, inputs, batch, self.rounds, meters, self.cores)

    def report(self) -> dict[str, Any]:
        """The JSON report.

        `throughput_ratio` compares the last model with the first, at the first model's fastest
        batch size. If the user gives no batch size, each model runs at its own best size.
        """
        first = [x for x in self.entries if x.name == self.entries[0].name]
        at = max(first, key=_rows_per_second).batch
        same = [x for x in self.entries if x.batch == at or self.batches is None]
        engines = {
            name: dict(x.opened.engine.describe()) | _graph(x) for name, x in self.ran.items()
        }
        return {
            "schema_version": 1,
            "throughput_ratio": same[-1].throughput_ratio,
            "at_batch": at,
            "entries": [asdict(x) for x in self.entries],
            "best": [asdict(x) for x in self.best],
            "probes": [asdict(x) for x in self.choices.probes],
            "engines": engines,
            "file_bytes": {name: x.opened.size_bytes for name, x in self.ran.items()},
            "power": self.power,
            "rounds": self.rounds,
            "timing": TIMING,
        }


def _graph(chosen: Choice) -> dict[str, str]:
    return {"graph": chosen.opened.graph} if chosen.opened.graph else {}


def _rows_per_second(entry: Entry) -> float:
    return entry.rows_per_second
