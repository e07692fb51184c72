"""What was measured: report.json, and the table that the command line prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from prumux.optimizer.base.environment import device, versions
from prumux.optimizer.base.store import write_atomic
from prumux.optimizer.model.cost import count
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.certificate import interval

from .html import PAGE, write_html

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.target import Target
    from prumux.optimizer.search.bisection import SearchResult
    from prumux.optimizer.search.evaluator import Evaluator

SCHEMA_VERSION = 1


def build_report(
    evaluator: Evaluator,
    found: SearchResult | None,
    shipped: Any,
    *,
    budget: str | None,
    limit: float | None,
    serving: Mapping[str, Any],
    facts: Mapping[str, Any],
    command: str,
    seconds: float,
) -> dict[str, Any]:
    """Everything a reader needs to believe or repeat the result, as plain values."""
    both = {"dense": shipped.dense, "optimised": shipped.optimised}
    chosen = shipped.optimised
    model, pipeline = chosen.model, chosen.pipeline
    return {
        "schema_version": SCHEMA_VERSION,
        "met": found is None or found.winner is not None,
        "reason": "the pipeline that was asked for" if found is None else found.reason,
        "pipeline": str(pipeline),
        "dropped": None if shipped.dropped is None else _engine(shipped.dropped),
        "target": str(chosen.target),
        "budget": budget,
        "limit": limit,
        "metric": evaluator.metric,
        "task": asdict(evaluator.model.task),
        "scores": _scores(evaluator, chosen, limit or 0.0),
        "throughput_ratio": chosen.speed.throughput_ratio,
        "speed": {name: asdict(x.speed) for name, x in both.items()},
        "beside": [_engine(x) for x in shipped.beside],
        "serving": dict(serving),
        "cost": {
            n: count(x.model.encoder, evaluator.ctx.length).to_json() for n, x in both.items()
        },
        "file_bytes": {name: x.size_bytes for name, x in both.items()},
        "layers": {
            "heads": [x.heads for x in model.encoder.layers],
            "ffn": [x.ffn for x in model.encoder.layers],
            "hidden": model.encoder.hidden,
            "heads_dense": [x.heads for x in evaluator.model.encoder.layers],
            "ffn_dense": [x.ffn for x in evaluator.model.encoder.layers],
            "hidden_dense": evaluator.model.encoder.hidden,
        },
        "mux": evaluator.predictor.partner_sensitivity(pipeline, "certify")
        if model.encoder.mux
        else None,
        "passes": [asdict(x) for x in model.history],
        "export": {name: dict(x.emitted.notes) for name, x in both.items()},
        "engine": dict(chosen.engine.describe()),
        "trials": [] if found is None else [_trial(t) for t in found.trials],
        "proofs": [] if found is None else [_proof(p, c) for p, c in found.proofs],
        "data": {"digest": evaluator.data_digest, "roles": list(evaluator.notes)},
        "source": dict(evaluator.model.source),
        "facts": dict(facts),
        "seed": evaluator.ctx.seed,
        "command": command,
        "seconds": seconds,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "device": {**device(), **evaluator.ctx.cores.facts()},
    }


def write_report(report: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write report.json, which also lists the files of the result, and its page."""
    written = {str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file()}
    names = written | {PAGE, "report.json"}
    if report["trials"]:
        names.add("trials.jsonl")  # still where the run keeps its state
    whole = {**report, "files": sorted(names)}
    text = json.dumps(whole, indent=2, allow_nan=False) + "\n"
    write_html(json.loads(text), folder)
    write_atomic(folder / "report.json", text.encode())
    return whole


def _scores(evaluator: Evaluator, shipped: Any, limit: float) -> dict[str, Any]:
    """Dense against shipped on every role that is reported, paired."""
    found = {}
    for role in ("certify", "test"):
        if role == "test" and evaluator.test_rows is None:
            continue
        proof = evaluator.compare(shipped.pipeline, role, limit, target=shipped.target)
        entry = proof.to_json()
        del entry["limit"], entry["holds"]
        entry["interval"] = list(_interval(evaluator, role, shipped.pipeline, shipped.target))
        if evaluator.metric != "agreement":
            entry["interval_dense"] = list(_interval(evaluator, role, Pipeline(())))
        found[role] = entry
    return found


def _interval(
    evaluator: Evaluator, role: str, pipeline: Pipeline, target: Target | None = None
) -> tuple[float, float]:
    predictions, labels = evaluator.predictor.with_labels(pipeline, role, target)
    return interval(
        evaluator.metric, predictions, labels, evaluator.model.task, seed=evaluator.ctx.seed
    )


def _engine(timed: Any) -> dict[str, Any]:
    """An engine that is not shipped."""
    return {
        "pipeline": str(timed.pipeline),
        "target": str(timed.target),
        "file_bytes": timed.size_bytes,
        **asdict(timed.speed),
    }


def _trial(trial: Any) -> dict[str, Any]:
    entry = asdict(trial)
    entry["pipeline"] = str(trial.pipeline)
    return entry


def _proof(pipeline: Pipeline, certificate: Any) -> dict[str, Any]:
    return {"pipeline": str(pipeline), **certificate.to_json()}


def print_table(report: Mapping[str, Any], stream: TextIO) -> None:
    """Dense against optimised, side by side."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 100)
    table = Table(box=box.SIMPLE_HEAD)
    for name, justify in (
        ("", "left"),
        ("dense", "right"),
        ("optimised", "right"),
        ("", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in _rows(report):
        table.add_row(*row)
    console.print(table)


def summary(report: Mapping[str, Any], folder: Path) -> list[str]:
    """The lines below the table."""
    lines = [f"pipeline   {report['pipeline'] or '(dense)'}", f"target     {report['target']}"]
    for x in report["beside"]:
        name = "the same pipeline" if x["pipeline"] == report["pipeline"] else "dense"
        lines.append(f"beside     {name} on {x['target']}: {x['throughput_ratio']:.2f}x")
    if report["budget"] is not None:
        proof = report["scores"]["certify"]
        if report["dropped"] is not None:
            lines.append(f"budget     {report['budget']}: kept, the given model is shipped")
        elif not report["limit"]:
            lines.append(
                f"budget     {report['budget']}: exact passes only, nothing to certify"
            )
        elif report["met"]:
            lines.append(
                f"budget     {report['budget']} of {report['metric']}: held with "
                f"{proof['confidence']:.0%} confidence ({proof['rows']} certify rows, "
                f"{proof['method']} bound {100 * proof['loss_upper']:.2f} points)"
            )
            lines.append(f"why        {report['reason']}")
        test = report["scores"].get("test")
        if test is not None:
            lines.append(
                f"test       {100 * test['loss']:.2f} points lost, at most "
                f"{100 * test['loss_upper']:.2f} with {test['confidence']:.0%} confidence "
                f"({test['rows']} rows, no choice was made on them)"
            )
        if not report["met"]:
            lines.append(f"not met    {report['reason']}")
            lines.append(
                f"           the folder holds the unpruned engine, {report['target']}"
            )
    if report["dropped"] is not None:
        lost = report["dropped"]
        lines.append(
            f"dropped    {lost['pipeline']}: its engine ran at "
            f"{lost['throughput_ratio']:.2f}x of the dense one"
        )
    since = " since --resume" if "--resume" in report["command"] else ""
    lines.append(f"written    {folder}/  ({report['seconds']:.0f} s{since})")
    return lines


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    dense, ours = report["speed"]["dense"], report["speed"]["optimised"]
    rows = []
    for role, x in report["scores"].items():
        low, high = x["interval"]
        rows.append(
            (
                f"{report['metric']}, {role} ({x['rows']} rows)",
                f"{100 * x['score_dense']:.2f}",
                f"{100 * x['score']:.2f}  [{100 * low:.2f}, {100 * high:.2f}]",
                f"{-100 * x['loss']:+.2f}",
            )
        )
    if mux := report["mux"]:
        low, high = min(mux["scores"]), max(mux["scores"])
        mean = f"{100 * mux['mean']:.2f}  [{100 * low:.2f}, {100 * high:.2f}]"
        rows.append((f"  over {len(mux['scores'])} draws of partners", "", mean, ""))
        share = f"{100 * mux['depends_on_partners']:.1f}%"
        rows.append(("  rows whose answer depends on them", "", share, ""))
    spread = f"[{ours['throughput_ratio_low']:.2f}, {ours['throughput_ratio_high']:.2f}]"
    serving = report["serving"]
    point = f"batch {serving['batch']}, {serving['mean_tokens']} tokens"
    rows.append(
        (
            f"rows/s ({point})",
            f"{dense['rows_per_second']:.0f}",
            f"{ours['rows_per_second']:.0f}",
            f"{ours['throughput_ratio']:.2f}x  {spread}",
        )
    )
    for name in ("p50", "p99"):
        a, b = dense[f"latency_ms_{name}"], ours[f"latency_ms_{name}"]
        rows.append((f"latency {name}, one row (ms)", f"{a:.2f}", f"{b:.2f}", f"{a / b:.2f}x"))
    cost = report["cost"]
    for title, field, scale in (
        ("parameters (M)", "parameters", 1e6),
        ("encoder parameters (M)", "encoder_parameters", 1e6),
        ("multiply-adds a row (M)", "macs", 1e6),
    ):
        a, b = cost["dense"][field], cost["optimised"][field]
        rows.append((title, f"{a / scale:.2f}", f"{b / scale:.2f}", f"{b / max(a, 1):.0%}"))
    a, b = report["file_bytes"]["dense"], report["file_bytes"]["optimised"]
    rows.append(
        ("engine file (MB)", f"{a / 1e6:.1f}", f"{b / 1e6:.1f}", f"{b / max(a, 1):.0%}")
    )
    return rows
