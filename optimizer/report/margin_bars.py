"""Positions of the bars in the histogram of a cascade's margins."""

from __future__ import annotations

from dataclasses import dataclass

from .contents import CascadeRecord
from .scales import LinearScale, Tick, round_values

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 170.0, 46.0, 466.0, 10.0, 132.0


@dataclass(frozen=True)
class MarginBar:
    """One bar. Its lower part counts rows that the two stages answer differently."""

    x: float
    width: float
    y: float
    differ_y: float
    title: str
    """A description of the bar, for tooltips and screen readers."""


@dataclass(frozen=True)
class MarginBars:
    """The histogram in user units."""

    height: float
    left: float
    right: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bars: tuple[MarginBar, ...]
    threshold: float | None
    """The position of the threshold; None if it is beyond all rows."""


def margin_bars(record: CascadeRecord) -> MarginBars:
    """The histogram of the margins on the certify rows."""
    bins = record.margins
    x = LinearScale(bins[0].low, bins[-1].high, LEFT, RIGHT)
    y = LinearScale(0.0, float(max(1, *(b.rows for b in bins))), BOTTOM, TOP)
    bars = tuple(
        MarginBar(
            x=x(b.low),
            width=round(max(0.5, x(b.high) - x(b.low) - 1), 2),
            y=y(b.rows),
            differ_y=y(b.differ),
            title=f"margins {b.low:.2f} to {b.high:.2f}: {b.rows} rows, "
            f"{b.differ} answered differently by the stages",
        )
        for b in bins
    )
    inside = record.threshold <= bins[-1].high
    return MarginBars(
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        bottom=BOTTOM,
        x_ticks=tuple(Tick(x(v), f"{v:g}") for v in round_values(x.first, x.last, 6)),
        y_ticks=tuple(Tick(y(v), f"{v:g}") for v in round_values(y.first, y.last, 4)),
        bars=bars,
        threshold=x(record.threshold) if inside else None,
    )
