"""The measurements of `prumux-bench`: every batch size, then each model at its own best."""

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
"""`run.measure`."""


@dataclass(eq=False)
class Measured:
    """The measurements of one command."""

    choices: Choices
    batches: Sequence[int] | None
    """Batch sizes at which all models are compared; None = only each at its own best."""
    rounds: int
    cores: CoreMonitor
    entries: list[Entry] = field(default_factory=list)
    best: list[Entry] = field(default_factory=list)
    """Each model at its own best batch size; ratios are against the first."""
    ran: dict[str, Choice] = field(default_factory=dict)
    """By model, what was timed last."""
    power: dict[str, str] = field(default_factory=dict)
    """By model, the meter of its energy, or why there is none."""

    def run(
        self, measure: Measure, step: Callable[[], None]
    ) -> KeyboardInterrupt | PrumuxError | None:
        """Measure; what ends it early is returned, so that the rest can be shown first.

        Raises:
            PrumuxError: nothing was measured.
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
        """Each model at the batch size at which it was fastest, in one run of all."""
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
        """The JSON report; `throughput_ratio` is at the batch size where the first is fastest.

        Where no batch size was asked for it is that of `best`: both at their own best.
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
