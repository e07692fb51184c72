"""Axes of the report's drawings, and marks on them.

Coordinates are SVG user units, x to the right and y downwards; every figure is `WIDTH` wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["dense", "trial", "holds", "fails", "shipped", "test", "predicted"]
WIDTH = 480.0
TIMES = "\N{MULTIPLICATION SIGN}"
LADDER = (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1000)
APART = 34.0
"""The least distance of two ticks on a logarithmic axis."""


@dataclass(frozen=True)
class Tick:
    """A line of the grid and what stands beside it."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """One thing that was measured."""

    kind: Kind
    x: float
    y: float
    title: str
    """In words and with units, for who points at it or has it read out."""
    label: str = ""
    value: str = ""
    low: float | None = None
    """Where its interval ends: y in the frontier, x in rows of dots."""
    high: float | None = None
    off: bool = False
    """Beyond the lower edge of the figure, where it is drawn."""


def nice(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two bounds, at most about `most`."""
    span = max(high - low, 1e-9)
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Linear:
    """Values `first` to `last` onto coordinates `start` to `end`."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.first) / ((self.last - self.first) or 1.0)
        return round(self.start + share * (self.end - self.start), 2)


@dataclass(frozen=True)
class Log:
    """The same on a logarithmic axis."""

    first: float
    last: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.first) / (math.log(self.last / self.first) or 1.0)
        return round(self.start + share * (self.end - self.start), 2)


def times(x: Log) -> tuple[Tick, ...]:
    """Ticks for ratios, such as two times, that do not run into each other."""
    kept: list[float] = []
    for value in LADDER:
        inside = x.first <= value <= x.last
        if inside and (not kept or x(value) - x(kept[-1]) >= APART):
            kept.append(value)
    return tuple(Tick(x(v), f"{v:g}{TIMES}") for v in kept)
