"""The small drawings of the report: speed-ups, scores, and what is left of every layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .plot_axes import TIMES, WIDTH, Kind, Linear, Mark, Tick, nice

Report = Mapping[str, Any]
Value = tuple[Kind, str, float, float | None, float | None]
"""Kind, label, value, and where its interval begins and ends."""
ROW = 26.0


@dataclass(frozen=True)
class Dots:
    """Rows of one value each, with its interval, on one axis."""

    height: float
    left: float
    right: float
    ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Bar:
    """How much of one thing is left."""

    x: float
    y: float
    width: float
    kept: int
    dense: int

    @property
    def filled(self) -> float:
        """Width of what is left."""
        return self.width * self.kept / max(self.dense, 1)


@dataclass(frozen=True)
class Layers:
    """Heads and FFN units of every layer, and the hidden dimensions."""

    height: float
    rows: tuple[tuple[Bar, Bar], ...]
    hidden: Bar


def speeds(report: Report) -> Dots:
    """The measured speed-up of the shipped engine beside what was predicted of it."""
    dense, ours = (report["cost"][name]["macs"] for name in ("dense", "optimised"))
    told = [("by multiply-adds alone", dense / max(ours, 1))]
    # What `prune{speedup=}` was asked for, which it checks by timing shapes.
    aims = re.findall(r"speedup=([0-9.e+]+)", report["pipeline"])
    told += [("asked for, shapes timed", float(aim)) for aim in aims[-1:]]
    told += [
        ("predicted", t["predicted_ratio"])
        for t in report["trials"]
        if t["pipeline"] == report["pipeline"] and t.get("predicted_ratio")
    ]
    rows: list[Value] = [("predicted", label, value, None, None) for label, value in told]
    rows.append(_timed("shipped", "measured, shipped", report["speed"]["optimised"]))
    if report["dropped"]:
        rows.append(_timed("fails", "measured, dropped", report["dropped"]))
    rows += [_timed("trial", engine_name(x, report), x) for x in report.get("beside", [])]
    return _dots(rows, start=0.0, form="{:.2f}" + TIMES)


def scores(report: Report) -> Dots:
    """Scores of dense and shipped with their intervals, in points."""
    rows: list[Value] = []
    for role, found in report["scores"].items():
        low, high = found.get("interval_dense", (None, None))
        if low is not None:
            low, high = 100 * low, 100 * high
        rows.append(("dense", f"dense, {role}", 100 * found["score_dense"], low, high))
        low, high = (100 * v for v in found["interval"])
        rows.append(("shipped", f"shipped, {role}", 100 * found["score"], low, high))
    return _dots(rows, start=None, form="{:.2f}")


def layers(report: Report) -> Layers:
    """What is left of every layer. Which heads and units went is not in the report."""
    found = report["layers"]
    pairs = zip(
        found["heads"], found["heads_dense"], found["ffn"], found["ffn_dense"], strict=True
    )
    rows = tuple(
        (
            Bar(58, 30 + i * ROW, 120, heads, heads_dense),
            Bar(252, 30 + i * ROW, 150, ffn, ffn_dense),
        )
        for i, (heads, heads_dense, ffn, ffn_dense) in enumerate(pairs)
    )
    below = 30 + len(rows) * ROW + 14
    dense = found.get("hidden_dense", found["hidden"])
    return Layers(below + 24, rows, Bar(58, below, 344, found["hidden"], dense))


def engine_name(engine: Report, report: Report) -> str:
    """What an engine is that is not shipped: whose it is, and its precision."""
    whose = "dense" if not engine["pipeline"] else "shipped cut"
    if engine["pipeline"] not in ("", report["pipeline"]):
        whose = "another cut"
    precision = re.search(r"precision=(\w+)", engine.get("target", ""))
    return f"{whose}, {precision[1]}" if precision else whose


def _timed(kind: Kind, label: str, speed: Report) -> Value:
    low, high = speed["throughput_ratio_low"], speed["throughput_ratio_high"]
    return kind, label, speed["throughput_ratio"], low, high


def _dots(rows: Sequence[Value], start: float | None, form: str) -> Dots:
    values = [v for row in rows for v in row[2:] if v is not None]
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    first = low - 0.15 * spread if start is None else min(start, low)
    x = Linear(first, high + 0.12 * (high - first or 1.0), 172.0, WIDTH - 62)
    marks = tuple(
        Mark(
            kind,
            x(value),
            20 + i * ROW,
            f"{label}: {form.format(value)}"
            + ("" if a is None or b is None else f" [{form.format(a)}, {form.format(b)}]"),
            label,
            form.format(value),
            low=None if a is None else x(a),
            high=None if b is None else x(b),
        )
        for i, (kind, label, value, a, b) in enumerate(rows)
    )
    unit = form[form.index("}") + 1 :]
    ticks = tuple(Tick(x(v), f"{v:g}{unit}") for v in nice(x.first, x.last, 5))
    return Dots(20 + len(rows) * ROW + 18, x.start, x.end, ticks, marks)
