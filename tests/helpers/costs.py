"""Costs files of made-up machines, for which no clock is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prumux.export.benchmark.measure_costs import dense_sizes
from prumux.optimizer.model.sizes import Encoder, Multiplexing
from prumux.optimizer.pipeline.costs import CostTable, TargetCosts
from prumux.optimizer.timing.calibration import plan
from prumux.optimizer.timing.cost_file import write_costs
from prumux.optimizer.timing.cost_table import fit

MACHINE = {"cpu": "Serving CPU", "gpu": "Serving GPU", "cpu_threads": "64"}
Clock = Callable[[Encoder], float]
"""Milliseconds of a model."""


def linear(head_ms: float, unit_ms: float, base_ms: float = 0.5) -> Clock:
    """A machine where every head and every FFN unit costs the same; a pass serves n rows."""

    def ms(encoder: Encoder) -> float:
        total, first = 0.0, encoder.narrow_from
        for i, x in enumerate(encoder.layers):
            share = 0.1 if i >= first else 1.0
            rows = encoder.slots if encoder.mux and i >= encoder.mux.at else 1
            total += share * (x.heads * head_ms + x.ffn * unit_ms) / rows
        return base_ms * (1.5 if encoder.mux else 1.0) + total

    return ms


def table(encoder: Encoder, clock: Clock) -> CostTable:
    """The cost table of these sizes on such a machine."""
    shapes = plan(encoder, 0)
    dense = replace(encoder, mux=None, pool_early=False)
    return fit(shapes, [clock(x) for x in shapes], clock(dense), encoder)


def costs_file(
    path: Path,
    model: Path | str,
    targets: dict[str, Clock],
    mixed: Sequence[int] = (2,),
    **serving: Any,
) -> Path:
    """A costs file for a model folder."""
    encoder, _ = dense_sizes(str(model))
    full = replace(encoder, pool_early=encoder.reads_first)
    found = {
        name: TargetCosts(
            table(full, clock),
            {n: table(replace(full, mux=Multiplexing(n)), clock) for n in mixed},
            {"engine": "made-up"},
        )
        for name, clock in targets.items()
    }
    point = serving.get("batch", 8), serving.get("length", 16)
    about = {"date": "2026-11-27T20:00:00+00:00", "command": "none"}
    write_costs(path, encoder, serving=point, targets=found, machine=MACHINE, about=about)
    return path
