"""The drawings of the report: frontier, rows of values with intervals, and layer bars.

This module computes positions, and drawings.svg.jinja prints them as inline SVG. The drawings
do not use matplotlib, for three reasons:

- Every installation would need matplotlib. Now only the extra `plot` needs it.
- Its pictures cannot follow the page's dark mode and font size.
- Its marks have no text for tooltips and screen readers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .contents import CertificateRecord, Report, Score, TrialRecord
from .engine_timings import EngineTiming, OtherEngine
from .formats import TIMES, points
from .scales import LinearScale, LogScale, Tick, ratio_ticks, round_values
from .units import Interval

MarkKind = Literal["dense", "trial", "holds", "fails", "shipped", "test", "predicted"]
WIDTH = 480.0
"""Width of every drawing, in user units."""
ROW_HEIGHT = 26.0
MARK_DISTANCE = 9.0
"""Horizontal distance between marks of one pipeline in the frontier."""


@dataclass(frozen=True)
class Mark:
    """A mark for one measured value."""

    kind: MarkKind
    x: float
    y: float
    title: str
    """A description of the value with its unit, for tooltips and screen readers."""
    label: str = ""
    value: str = ""
    low: float | None = None
    """Coordinate of the interval's end: y in the frontier, x in rows of values."""
    high: float | None = None
    outside: bool = False
    """True for a mark below the lower edge of the frontier, drawn as an arrow there."""


@dataclass(frozen=True)
class Frontier:
    """The plot of loss against speed or size, for every trial, certificate and score."""

    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    limit: float | None
    """The y coordinate of the largest loss within the budget; None = no budget."""
    marks: tuple[Mark, ...]
    predicted: bool
    """True if x is the predicted throughput, False if it counts multiply-adds."""


@dataclass(frozen=True)
class ValueRow:
    """One row of `ValueRows`, in the unit of its axis."""

    kind: MarkKind
    label: str
    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class ValueRows:
    """A plot of values with intervals, one in each row, on a common axis."""

    height: float
    left: float
    right: float
    ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Bar:
    """A bar for the kept units of one block, as a part of the given model's units."""

    x: float
    y: float
    width: float
    kept: int
    dense: int

    @property
    def filled(self) -> float:
        """Width of the kept part."""
        return self.width * self.kept / max(self.dense, 1)


@dataclass(frozen=True)
class LayerBars:
    """Bars for kept heads and FFN units of every layer, and for kept hidden dimensions."""

    height: float
    rows: tuple[tuple[Bar, Bar], ...]
    """Heads and FFN units of each layer."""
    hidden: Bar


def frontier(report: Report) -> Frontier:
    """The frontier: trials on select rows, certificates, and the shipped model's scores."""
    gains, predicted = _gains(report)
    losses = [_expected(t) for t in report.trials if t.loss is not None]
    compared = [*report.proofs, *report.scores.values()]
    largest = _largest_loss_drawn(report, losses)
    gain = -min(0.0, *losses, *(x.loss for x in compared))
    x = LogScale(
        min(1.0, *gains.values()) / 1.06, max(gains.values()) * 1.12, 52.0, WIDTH - 12
    )
    y = LinearScale(100 * (1.15 * gain + 0.15 * largest), -100 * largest, 14.0, 262.0)
    return Frontier(
        height=300.0,
        left=x.start,
        right=x.end,
        top=y.start,
        bottom=y.end,
        x_ticks=ratio_ticks(x),
        y_ticks=tuple(
            Tick(y(v), f"{v:+g}" if v else "0") for v in round_values(y.last, y.first, 6)
        ),
        limit=None if report.limit is None else y(-100 * report.limit),
        marks=tuple(_frontier_marks(report, {k: x(v) for k, v in gains.items()}, x(1), y)),
        predicted=predicted,
    )


def throughput_rows(report: Report) -> ValueRows:
    """Predicted and measured throughput of the shipped engine over the given model's."""
    macs = max(report.cost.optimised.macs, 1)
    rows = [ValueRow("predicted", "from multiply-adds", report.cost.dense.macs / macs)]
    # `prune{speedup=}` times shapes to check the requested speed-up.
    asked = re.findall(r"speedup=([0-9.e+]+)", report.pipeline)
    rows += [ValueRow("predicted", "asked for (speedup=)", float(x)) for x in asked[-1:]]
    how = "from timing its shape" if report.costs is None else f"from {report.costs.file}"
    rows += [
        ValueRow("predicted", how, t.predicted_ratio)
        for t in report.trials
        if t.pipeline == report.pipeline and t.predicted_ratio
    ]
    rows.append(_throughput("shipped", "measured, shipped", report.speed.optimised))
    if report.dropped:
        rows.append(_throughput("fails", "measured, dropped", report.dropped))
    rows += [_throughput("trial", engine_name(x, report), x) for x in report.beside]
    return _value_rows(rows, unit=TIMES, from_zero=True)


def score_rows(report: Report) -> ValueRows:
    """Scores of both models with their 95 % confidence intervals, in points."""
    rows = []
    for role, score in report.scores.items():
        rows += [
            ValueRow(
                "dense",
                f"dense, {role}",
                100 * score.score_dense,
                _in_points(score.interval_dense),
            ),
            ValueRow(
                "shipped", f"shipped, {role}", 100 * score.score, _in_points(score.interval)
            ),
        ]
    return _value_rows(rows)


def layer_bars(report: Report) -> LayerBars:
    """Kept sizes of every layer. The report does not list the kept heads and units."""
    sizes = report.layers
    rows = tuple(
        (
            Bar(58, 30 + i * ROW_HEIGHT, 120, heads, heads_dense),
            Bar(252, 30 + i * ROW_HEIGHT, 150, ffn, ffn_dense),
        )
        for i, (heads, heads_dense, ffn, ffn_dense) in enumerate(
            zip(sizes.heads, sizes.heads_dense, sizes.ffn, sizes.ffn_dense, strict=True)
        )
    )
    y = 30 + len(rows) * ROW_HEIGHT + 14
    dense = sizes.hidden_dense or sizes.hidden
    return LayerBars(y + 24, rows, Bar(58, y, 344, sizes.hidden, dense))


def engine_name(engine: OtherEngine, report: Report) -> str:
    """The model of an engine, and its precision."""
    model = report.model_name(engine.pipeline)
    precision = re.search(r"precision=(\w+)", engine.target)
    return f"{model}, {precision[1]}" if precision else model


def _gains(report: Report) -> tuple[dict[str, float], bool]:
    """The x value of each pipeline; also True if these are predicted throughputs.

    If a trial has no predicted throughput, the x values are the given model's multiply-adds
    divided by the candidate's.
    """
    trials = [t for t in report.trials if t.loss is not None]
    ratios = {t.pipeline: t.predicted_ratio for t in trials if t.predicted_ratio}
    counts = {t.pipeline: t.macs for t in trials}
    predicted = bool(trials) and ratios.keys() == counts.keys()
    counts.setdefault(report.pipeline, report.cost.optimised.macs)
    dense = report.cost.dense.macs
    by_count = {text: dense / max(macs or 0, 1) for text, macs in counts.items()}
    return (by_count | ratios if predicted else by_count), predicted


def _frontier_marks(
    report: Report, xs: Mapping[str, float], x_dense: float, y: LinearScale
) -> Iterator[Mark]:
    """All marks, in drawing order. `xs` has the x coordinate of each pipeline."""
    metric, x_shipped = report.metric, xs[report.pipeline]
    title = f"dense model: 1{TIMES}, 0 points of {metric} lost"
    yield Mark("dense", x_dense, y(0), title, "dense")
    for number, trial in enumerate(report.trials, 1):
        if trial.loss is not None:
            expected = _expected(trial)
            lost = f"{points(expected)} points of {metric} expected to be lost"
            on_select = f"{points(trial.loss)} lost on the select rows"
            title = f"trial {number}: {lost}, {on_select}; {trial.pipeline}"
            mark = _at_loss("trial", xs[trial.pipeline], y, expected, title)
            yield replace(mark, label=str(number))
    for proof in report.proofs:
        kind: MarkKind = "holds" if proof.holds else "fails"
        x = xs.get(proof.pipeline, x_shipped) + MARK_DISTANCE
        title = f"{_lost(proof, 'certify')}; {proof.pipeline}"
        yield _at_loss(kind, x, y, proof.loss, title, bound=proof.loss_upper)
    certified = any(p.pipeline == report.pipeline for p in report.proofs)
    for role, score in report.scores.items():
        if role == "certify" and certified:
            continue  # the certificate is drawn already
        kind, steps = ("test", 2) if role == "test" else ("shipped", 1)
        x = x_shipped + steps * MARK_DISTANCE
        title = f"shipped: {_lost(score, role)}"
        yield _at_loss(kind, x, y, score.loss, title, bound=score.loss_upper)


def _expected(trial: TrialRecord) -> float:
    """The expected loss of a trial that did not fail; its observed loss in older reports."""
    found = trial.loss if trial.expected_loss is None else trial.expected_loss
    assert found is not None
    return found


def _largest_loss_drawn(report: Report, losses: Sequence[float]) -> float:
    """The loss at the lower edge of the frontier, a share.

    Trials far beyond the budget lie outside, because they would crowd all other trials
    together.
    """
    bounds = [x.loss_upper for x in (*report.proofs, *report.scores.values())]
    limit = report.limit
    if limit is None:
        return 1.1 * max(0.005, *bounds, *losses)
    near = [loss for loss in losses if loss <= 4 * limit]
    return 1.1 * max(0.005, 1.5 * limit, *(x for x in bounds if x <= 8 * limit), *near)


def _at_loss(
    kind: MarkKind,
    x: float,
    y: LinearScale,
    loss: float,
    title: str,
    *,
    bound: float | None = None,
) -> Mark:
    """A mark at a loss, with a line down to the loss's upper bound, if there is one."""
    largest = -y.last / 100
    low = None if bound is None else y(-100 * min(bound, largest))
    at = y(-100 * min(loss, largest))
    return Mark(kind, x, at, title, low=low, outside=loss > largest)


def _lost(found: Score | CertificateRecord, role: str) -> str:
    return (
        f"{points(found.loss)} points of {found.metric} lost on the {role} rows, at most "
        f"{points(found.loss_upper)} with {found.confidence:.0%} confidence"
    )


def _throughput(kind: MarkKind, label: str, timing: EngineTiming) -> ValueRow:
    interval = timing.throughput_ratio_low, timing.throughput_ratio_high
    return ValueRow(kind, label, timing.throughput_ratio, interval)


def _in_points(interval: Interval | None) -> Interval | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def _value_rows(
    rows: Sequence[ValueRow], unit: str = "", from_zero: bool = False
) -> ValueRows:
    values = [v for row in rows for v in (row.value, *(row.interval or ()))]
    low, high = min(values), max(values)
    first = min(0.0, low) if from_zero else low - 0.15 * ((high - low) or 1.0)
    x = LinearScale(first, high + 0.12 * (high - first or 1.0), 172.0, WIDTH - 62)
    return ValueRows(
        height=20 + len(rows) * ROW_HEIGHT + 18,
        left=x.start,
        right=x.end,
        ticks=tuple(Tick(x(v), f"{v:g}{unit}") for v in round_values(x.first, x.last, 5)),
        marks=tuple(
            _row_mark(row, x, 20 + i * ROW_HEIGHT, unit) for i, row in enumerate(rows)
        ),
    )


def _row_mark(row: ValueRow, x: LinearScale, y: float, unit: str) -> Mark:
    value, low, high = f"{row.value:.2f}{unit}", None, None
    title = f"{row.label}: {value}"
    if row.interval is not None:
        low, high = (x(end) for end in row.interval)
        title += f" [{row.interval[0]:.2f}{unit}, {row.interval[1]:.2f}{unit}]"
    return Mark(row.kind, x(row.value), y, title, row.label, value, low, high)
