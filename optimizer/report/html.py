"""report.html: one file that shows a report.json to people and asks nothing of a network.

python -m prumux.optimizer.report.html report.json    # writes report.html beside it, again
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.tasks import registry

from . import charts
from .frontier import frontier
from .plot_axes import TIMES

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

Report = Mapping[str, Any]
PAGE = "report.html"
PER_GRAPH = ("parity", "agreement", "workload_ms")
"""Facts of an export that hold one value for each variant of the graph."""


def render(report: Report) -> str:
    """The page of a report: HTML with its style and drawings inside, every value escaped.

    Args:
        report: as in report.json (see report.schema.json); `files` may be missing.
    """
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            r=report,
            verdict=verdict(report),
            proof=proof_of(report),
            frontier=frontier(report),
            speeds=charts.speeds(report),
            scores=charts.scores(report),
            layers=charts.layers(report),
            trials=trial_rows(report),
            numbers={t["pipeline"]: i for i, t in enumerate(report["trials"], 1)},
            engines=engines(report),
            beside=[(charts.engine_name(x, report), x) for x in report.get("beside", [])],
            task=registry.from_report(report.get("task", {})),
        )
    )


def proof_of(report: Report) -> Mapping[str, Any] | None:
    """The certificate of what was shipped, None if there is none that holds."""
    found = (p for p in report["proofs"] if p["pipeline"] == report["pipeline"] and p["holds"])
    return next(found, None)


def verdict(report: Report) -> str:
    """The result in one sentence, no better than it is."""
    ratio = f"{report['throughput_ratio']:.2f}{TIMES} the dense model's throughput"
    metric, proof = report["metric"], proof_of(report)
    if not report["met"]:
        return f"No candidate met the budget. What was shipped is the unpruned model: {ratio}."
    if report["dropped"] is not None:
        lost = report["dropped"]["throughput_ratio"]
        return (
            f"The chosen engine ran at {lost:.2f}{TIMES} of the dense one and was dropped. "
            "What was shipped is the dense model."
        )
    if proof is not None:
        loss = max(0.0, 100 * proof["loss_upper"])
        return (
            f"{ratio}, at most {loss:.2f} points of {metric} lost "
            f"({proof['confidence']:.0%} confidence, budget {report['budget']})."
        )
    role = "test" if "test" in report["scores"] else "certify"
    loss = 100 * report["scores"][role]["loss"]
    lost_text = (
        f"{loss:.2f} points of {metric} lost"
        if loss >= 0
        else (f"{-loss:.2f} points of {metric} gained")
    )
    return (
        f"{ratio}, {lost_text} on the {role} rows. Nothing was certified: {report['reason']}."
    )


def trial_rows(report: Report) -> list[dict[str, Any]]:
    """Trials, what each has in common with the one before, and its certificate."""
    proofs = {p["pipeline"]: p for p in report["proofs"]}
    rows, before = [], ""
    for trial in report["trials"]:
        text = trial["pipeline"]
        common = len(before) + 1 if before and text.startswith(before + ",") else 0
        rows.append(
            {
                **trial,
                "common": text[:common],
                "rest": text[common:],
                "proof": proofs.get(text),
            }
        )
        before = text
    return rows


def engines(report: Report) -> list[dict[str, Any]]:
    """Dense and shipped export: facts of each variant of the graph, and the other facts."""
    found = []
    for name, facts in report["export"].items():
        tables = {k: facts[k] for k in PER_GRAPH if isinstance(facts.get(k), Mapping)}
        variants = list(dict.fromkeys(v for table in tables.values() for v in table))
        lowered = facts.get("precision") in variants
        shown = {*tables, "kept"}
        found.append(
            {
                "name": name,
                "kept": facts["precision"] if lowered else facts.get("kept"),
                "graphs": [(v, {k: x.get(v) for k, x in tables.items()}) for v in variants],
                "rest": {k: v for k, v in facts.items() if k not in shown and v != {}},
            }
        )
    return found


def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def load(name: str) -> str:
        return files("prumux.optimizer.report").joinpath(name).read_text(encoding="utf-8")

    made = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "points": _points,
        "millions": _millions,
        "duration": duration,
        "plain": plain,
        "pipeline": _breakable,
    }
    return made


def _points(share: float) -> str:
    return f"{100 * share:.2f}"


def _millions(number: float) -> str:
    return f"{number / 1e6:.2f}"


def duration(seconds: float) -> str:
    """Such as 0.03 s, 12 s or 27 min 22 s."""
    if seconds < 0.001:
        return "<1 ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{n} {unit}" for n, unit in parts if n)


def plain(value: object) -> str:
    """Any value of a report on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{k}: {plain(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value) or "none"
    return str(value)


def _breakable(text: str) -> Markup:
    """A pipeline's text, escaped, with places to break lines at its commas."""
    from markupsafe import Markup, escape

    return Markup(",<wbr>").join(escape(part) for part in text.split(","))


def write_html(report: Report, folder: Path) -> None:
    """Write report.html."""
    from prumux.optimizer.base.store import write_atomic

    write_atomic(folder / PAGE, render(report).encode())


def main(arguments: list[str]) -> int:
    """Make the page of a report.json again."""
    if len(arguments) != 1:
        raise UsageError("write: python -m prumux.optimizer.report.html report.json")
    path = Path(arguments[0])
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"'{path}' is no report: {error}") from error
    if not isinstance(report, dict) or "schema_version" not in report:
        raise UsageError(f"'{path}' is no report: it has no schema_version")
    try:
        write_html(report, path.parent)
    except (LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"'{path}' is no whole report: {error!r}") from error
    return 0


if __name__ == "__main__":
    from prumux.optimizer.cli.console import guarded

    sys.exit(guarded("prumux.optimizer.report.html", main, None, "repeat the command"))
