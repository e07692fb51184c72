"""Scales and ticks of the report's drawings.

A scale maps a value to a coordinate in SVG user units, with x to the right and y downwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .formats import TIMES

ROUND_RATIOS = (
    *(0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7),
    *(10, 15, 20, 30, 50, 70, 100, 200, 500, 1000),
)
RATIO_TICK_DISTANCE = 34.0
"""Smallest distance of two ticks on a logarithmic axis, in user units."""


@dataclass(frozen=True)
class Tick:
    """A grid line and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class LinearScale:
    """Maps values `first` to `last` linearly to coordinates `start` to `end`."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.first) / ((self.last - self.first) or 1.0)
        return round(self.start + share * (self.end - self.start), 2)


@dataclass(frozen=True)
class LogScale:
    """Maps values `first` to `last` logarithmically to coordinates `start` to `end`."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.first) / (math.log(self.last / self.first) or 1.0)
        return round(self.start + share * (self.end - self.start), 2)


def round_values(low: float, high: float, count: int) -> list[float]:
    """Round numbers from `low` to `high`, at most about `count` of them."""
    smallest_step = max(high - low, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(smallest_step))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= smallest_step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def ratio_ticks(x: LogScale) -> tuple[Tick, ...]:
    """Ticks for ratios, far enough apart that their labels do not overlap."""
    kept: list[float] = []
    for value in ROUND_RATIOS:
        inside = x.first <= value <= x.last
        if inside and (not kept or x(value) - x(kept[-1]) >= RATIO_TICK_DISTANCE):
            kept.append(value)
    return tuple(Tick(x(v), f"{v:g}{TIMES}") for v in kept)
