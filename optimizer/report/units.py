"""Units and ranges of the numbers in report.json, as types of fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Unit:
    """Unit and range of a number, used in the type of a field."""

    name: str = ""
    """Name of the unit; "" for a plain count."""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None


class _OmitNone:
    """Marks a field that report.json omits if the value is None."""


OMIT_NONE = _OmitNone()

Count = Annotated[int, Unit(minimum=0)]
Positive = Annotated[int, Unit(minimum=1)]
Bytes = Annotated[int, Unit("bytes", minimum=0)]
Seconds = Annotated[float, Unit("seconds", minimum=0)]
Milliseconds = Annotated[float, Unit("milliseconds", above=0)]
RowsPerSecond = Annotated[float, Unit("rows per second", above=0)]
Times = Annotated[float, Unit("times", above=0)]
Share = Annotated[float, Unit("share, where 0.01 is one point")]
Fraction = Annotated[float, Unit("share, where 0.01 is one point", minimum=0, maximum=1)]
Probability = Annotated[float, Unit("probability", above=0, below=1)]
Interval = tuple[float, float]
"""Lower and upper end, in the unit of the bounded number."""
