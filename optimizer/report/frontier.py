"""The frontier of the report: where each mark stands. The template only prints it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .plot_axes import TIMES, WIDTH, Kind, Linear, Log, Mark, Tick, nice, times

Report = Mapping[str, Any]
BESIDE = 9.0
"""How far marks of one pipeline stand apart."""


@dataclass(frozen=True)
class Frontier:
    """What was lost against how much less there is to compute."""

    height: float
    left: float
    right: float
    top: float
    bottom: float
    xs: tuple[Tick, ...]
    ys: tuple[Tick, ...]
    limit: float | None
    marks: tuple[Mark, ...]
    predicted: bool
    """Whether x is the predicted speed; if not, it is counted multiply-adds."""


def frontier(report: Report) -> Frontier:
    """Trials on the select rows, certificates, and what was shipped."""
    trials = [t for t in report["trials"] if t.get("loss") is not None]
    predicted = bool(trials) and all(t.get("predicted_ratio") for t in trials)
    dense, ours = (report["cost"][name]["macs"] for name in ("dense", "optimised"))
    gains = {
        t["pipeline"]: t["predicted_ratio"] if predicted else dense / max(t["macs"], 1)
        for t in trials
    }
    gains.setdefault(report["pipeline"], dense / max(ours, 1))
    losses = [e["loss"] for e in (*trials, *report["proofs"], *report["scores"].values())]
    floor, ceiling = _floor(report, [t["loss"] for t in trials]), max(0.0, -min(losses))
    x = Log(min(1.0, *gains.values()) / 1.06, max(gains.values()) * 1.12, 52.0, WIDTH - 12)
    y = Linear(100 * (1.15 * ceiling + 0.15 * floor), -100 * floor, 14.0, 262.0)
    limit = report["limit"]
    return Frontier(
        height=300.0,
        left=x.start,
        right=x.end,
        top=y.start,
        bottom=y.end,
        xs=times(x),
        ys=tuple(Tick(y(v), f"{v:+g}" if v else "0") for v in nice(y.last, y.first, 6)),
        limit=None if limit is None else y(-100 * limit),
        marks=tuple(_marks(report, {k: x(v) for k, v in gains.items()}, x(1), y)),
        predicted=predicted,
    )


def _marks(report: Report, xs: Mapping[str, float], start: float, y: Linear) -> Iterator[Mark]:
    """All marks, the later ones over the earlier; `xs` has a place for each pipeline."""
    metric, shipped = report["metric"], report["pipeline"]
    title = f"dense model: 1{TIMES}, 0 points of {metric} lost"
    yield Mark("dense", start, y(0), title, "dense")
    for number, t in enumerate(report["trials"], 1):
        if t.get("loss") is not None:
            title = f"trial {number}: {_lost(t, metric, 'select')}; {t['pipeline']}"
            mark = _falling("trial", xs[t["pipeline"]], y, t, title)
            yield replace(mark, label=str(number))
    for proof in report["proofs"]:
        kind: Kind = "holds" if proof["holds"] else "fails"
        title = f"{_lost(proof, metric, 'certify')}; {proof['pipeline']}"
        here = xs.get(proof["pipeline"], xs[shipped])
        yield _falling(kind, here + BESIDE, y, proof, title)
    proved = any(p["pipeline"] == shipped for p in report["proofs"])
    for role, found in report["scores"].items():
        if role == "certify" and proved:
            continue  # it is there as a certificate
        kind, steps = ("test", 2) if role == "test" else ("shipped", 1)
        title = f"shipped: {_lost(found, metric, role)}"
        yield _falling(kind, xs[shipped] + steps * BESIDE, y, found, title)


def _floor(report: Report, lost: Sequence[float]) -> float:
    """The greatest loss that is drawn in its place: all that was shipped or certified, and
    of the trials those that are not far beyond the budget, so that the rest can be told apart.
    """
    ends: list[float] = [
        e["loss_upper"] for e in (*report["proofs"], *report["scores"].values())
    ]
    limit: float | None = report["limit"]
    if limit is None:
        return 1.1 * max(0.005, *ends, *lost)
    near = [x for x in lost if x <= 4 * limit]
    return 1.1 * max(0.005, 1.5 * limit, *(x for x in ends if x <= 8 * limit), *near)


def _falling(kind: Kind, x: float, y: Linear, found: Report, title: str) -> Mark:
    """A mark at a loss, with a line down to its bound if it has one."""
    floor = -y.last / 100
    loss, bound = found["loss"], found.get("loss_upper")
    low = None if bound is None else y(-100 * min(bound, floor))
    at = y(-100 * min(loss, floor))
    return Mark(kind, x, at, title, low=low, off=loss > floor)


def _lost(found: Mapping[str, Any], metric: str, role: str) -> str:
    text = f"{100 * found['loss']:.2f} points of {metric} lost on the {role} rows"
    if "loss_upper" in found:
        bound, confidence = 100 * found["loss_upper"], found["confidence"]
        text += f", at most {bound:.2f} with {confidence:.0%} confidence"
    return text
