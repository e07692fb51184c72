"""The page report.html, which loads nothing from a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from prumux.optimizer.tasks import registry

from . import drawings
from .contents import CertificateRecord, Report, TrialRecord
from .costs_record import CostsRecord
from .formats import TIMES, duration, machine_name, millions, percent, plain, points
from .margin_bars import margin_bars

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

VARIANT_FACTS = ("parity", "agreement", "workload_ms")
"""Facts of an export with one value for each variant of the graph."""


@dataclass(frozen=True)
class TrialRow:
    """A row of the table of trials."""

    trial: TrialRecord
    shared: str
    """The start of the pipeline text, if it is the whole text of the previous trial."""
    rest: str
    certificate: CertificateRecord | None


@dataclass(frozen=True)
class ExportFacts:
    """A target's facts about one export."""

    name: str
    used: str | None
    """Name of the graph variant that was kept."""
    variants: tuple[tuple[str, Mapping[str, Any]], ...]
    """Name and facts of each variant."""
    other: Mapping[str, Any]


def render(report: Report) -> str:
    """Make the page, with inline style and drawings. Every value is escaped."""
    template = environment().get_template("report.html.jinja")
    return template.render(
        r=report,
        verdict=verdict(report),
        proof=report.certificate,
        frontier=drawings.frontier(report),
        throughput=drawings.throughput_rows(report),
        scores=drawings.score_rows(report),
        margins=None if report.cascade is None else margin_bars(report.cascade),
        layers=drawings.layer_bars(report),
        trials=trial_rows(report),
        numbers={t.pipeline: i for i, t in enumerate(report.trials, 1)},
        exports=[export_facts(*x) for x in vars(report.export).items()],
        estimate=None if report.costs is None else estimated(report.costs),
        here=machine_name(report.device),
        beside=[(drawings.engine_name(x, report), x) for x in report.beside],
        task=registry.from_report({} if report.task is None else vars(report.task)),
    )


def verdict(report: Report) -> str:
    """The result in one sentence."""
    ratio = f"{report.throughput_ratio:.2f}{TIMES} the dense model's throughput"
    if report.costs is not None:
        ratio = estimated(report.costs)
    if not report.met:
        return f"No candidate met the budget. The unpruned model is shipped: {ratio}."
    if report.dropped is not None:
        slow = report.dropped.throughput_ratio
        if report.costs is not None:
            return f"The chosen engine was dropped: {ratio}. The dense model is shipped."
        return (
            f"The chosen engine was dropped: it ran at {slow:.2f}{TIMES} the dense engine's "
            "throughput. The dense model is shipped."
        )
    proof = report.certificate
    if proof is not None:
        bound, confidence = points(max(0.0, proof.loss_upper)), f"{proof.confidence:.0%}"
        return (
            f"{ratio}, at most {bound} points of {report.metric} lost "
            f"({confidence} confidence, budget {report.budget})."
        )
    role, score = report.scores.items()[-1]
    change = "lost" if score.loss >= 0 else "gained"
    return (
        f"{ratio}, {points(abs(score.loss))} points of {report.metric} {change} on the "
        f"{role} rows. Nothing was certified: {report.reason}."
    )


def estimated(costs: CostsRecord) -> str:
    """The estimated throughput on the machine of a costs file."""
    where = f"for {machine_name(costs.measured_on)} by {costs.file}, not measured"
    if costs.throughput_ratio is None:
        return f"no estimate of the throughput {where}"
    return (
        f"{costs.throughput_ratio:.2f}{TIMES} the dense model's throughput, estimated {where}"
    )


def trial_rows(report: Report) -> list[TrialRow]:
    """The rows of the table of trials."""
    certificates = {p.pipeline: p for p in report.proofs}
    rows, before = [], ""
    for trial in report.trials:
        text = trial.pipeline
        shared = len(before) + 1 if before and text.startswith(before + ",") else 0
        rows.append(TrialRow(trial, text[:shared], text[shared:], certificates.get(text)))
        before = text
    return rows


def export_facts(name: str, facts: Mapping[str, Any]) -> ExportFacts:
    """Facts of an export, with the facts of graph variants in a table of their own."""
    tables = {k: facts[k] for k in VARIANT_FACTS if isinstance(facts.get(k), Mapping)}
    variants = dict.fromkeys(v for table in tables.values() for v in table)
    precision = facts.get("precision")
    return ExportFacts(
        name=name,
        used=precision if precision in variants else facts.get("kept"),
        variants=tuple((v, {k: x.get(v) for k, x in tables.items()}) for v in variants),
        other={k: v for k, v in facts.items() if k not in (*tables, "kept") and v != {}},
    )


@cache
def environment() -> Environment:
    """The template environment of this folder. Values are escaped, except in Markdown.

    It keeps templates compiled, for the next report of this process.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("prumux.optimizer.report")
    made = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=lambda name: name is None or not name.endswith(".md.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "points": points,
        "millions": millions,
        "duration": duration,
        "plain": plain,
        "pipeline": _breakable,
    }
    made.globals |= {"percent": percent}
    return made


def _breakable(text: str) -> Markup:
    """A pipeline's text, escaped. A browser may break the line after commas."""
    from markupsafe import Markup, escape

    return Markup(",<wbr>").join(escape(part) for part in text.split(","))
