"""The table and the summary that prumux-opt prints at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from .contents import CascadeRecord, ClassRecord, ClassScores, MuxRecord, Report
from .costs_record import CostsRecord
from .formats import duration, machine_name, millions, percent, points
from .vocabulary_record import VocabularyRecord

Row = tuple[str, str, str, str]
"""Columns: the figure, the dense model, the optimised model, and the comparison."""
LABEL_WIDTH = 11
MAX_CLASSES = 20
"""Largest number of classes for which the table shows all."""
WORST_CLASSES = 5
"""Number of classes in the table if there are more than `MAX_CLASSES`."""


def print_table(report: Report, stream: TextIO) -> None:
    """Print the dense model and the optimised model side by side."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = None if stream.isatty() else 100
    # Class names are printed literally: `[b]` is no markup, and `:x:` is no emoji.
    console = Console(file=stream, highlight=False, markup=False, emoji=False, width=width)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in ("dense", "optimised", "optimised vs dense"):
        table.add_column(name, justify="right")
    for row in table_rows(report):
        table.add_row(*row)
    with console.capture() as captured:  # rich would exit the process on a broken pipe
        console.print(table)
    print(captured.get(), end="", file=stream)


def unit_of(report: Report) -> str:
    """The unit of the field `rows` of scores, such as rows or queries."""
    return (report.task and report.task.unit) or "rows"


def table_rows(report: Report) -> list[Row]:
    """The rows of the table."""
    rows = []
    for role, score in report.scores.items():
        low, high = score.interval
        rows.append(
            (
                f"{report.metric}, {role} ({score.rows} {unit_of(report)})",
                points(score.score_dense),
                f"{points(score.score)}  [{points(low)}, {points(high)}]",
                f"{100 * (0 - score.loss):+.2f} points",
            )
        )
        if report.classes is not None:
            rows += class_rows(dict(report.classes.items())[role])
    rows += [*_cascade_rows(report.cascade), *_vocabulary_rows(report.vocabulary)]
    return [*rows, *_mux_rows(report.mux), *_speed_rows(report), *_size_rows(report)]


def summary(report: Report, folder: Path) -> list[str]:
    """The lines below the table."""
    lines = [("pipeline", report.pipeline or "(dense)"), ("target", report.target)]
    lines.append(("answered", _answered_by(report.engine)))
    for engine in report.beside:
        text = f"{report.model_name(engine.pipeline)} on {engine.target}"
        lines.append(("also timed", f"{text}: {engine.throughput_ratio:.2f}x"))
    if report.costs is not None:
        lines += _costs_lines(report.costs, report.device)
    dense, ours = report.speed.dense.own_batch, report.speed.optimised.own_batch
    if dense is not None and ours is not None:
        spread = f"[{ours.throughput_ratio_low:.2f}, {ours.throughput_ratio_high:.2f}]"
        sizes = f"dense {dense.batch} rows, optimised {ours.batch}"
        text = f"{ours.throughput_ratio:.2f}x  {spread} (batches: {sizes})"
        lines.append(("each best", text))
    if report.budget is not None:
        lines += _budget_lines(report)
    if report.dropped is not None:
        ratio = report.dropped.throughput_ratio
        text = f"its engine ran at {ratio:.2f}x the dense engine's throughput"
        if report.costs is not None:
            text = "slower than the dense engine by its costs"
        lines.append(("dropped", f"{report.dropped.pipeline}: {text}"))
    lines += [("warning", x) for x in report.warnings]
    since = " since --resume" if "--resume" in report.command else ""
    lines.append(("written", f"{folder}/  ({duration(report.seconds)}{since})"))
    return [f"{name:<{LABEL_WIDTH}}{text}" for name, text in lines]


def _answered_by(engine: Mapping[str, str]) -> str:
    """The engine whose answers were scored and certified."""
    name = " ".join(engine.get(x, "") for x in ("engine", "version", "precision")).strip()
    text = f"by {name} on {engine.get('device', 'cpu')}"
    if "instead_of" in engine:
        text += f", in place of {engine['instead_of']}, whose engine did not run here"
    return text


def _costs_lines(costs: CostsRecord, here: Mapping[str, str]) -> list[tuple[str, str]]:
    """Lines about the serving machine, and about the machine of the search."""
    there, ratio = machine_name(costs.measured_on), costs.throughput_ratio
    found = "no throughput" if ratio is None else f"{ratio:.2f}x the dense throughput"
    return [
        (
            "estimated",
            f"{found} on {there}, by {costs.file} ({costs.target}, batch {costs.batch}, "
            f"{costs.length} tokens, {costs.date}); not measured",
        ),
        (
            "searched",
            f"on {machine_name(here)}; rows/s and latencies in the table were measured here "
            "and chose nothing",
        ),
    ]


def class_rows(found: ClassScores) -> list[Row]:
    """Table lines below a score: agreement of both models, and the recall of each class.

    If there are more than `MAX_CLASSES` classes, only the largest losses of recall are shown.
    """
    rows = [("  agreement with dense", "", points(found.agreement), "")]
    if found.cosine is not None:
        rows.append(("  mean cosine to dense", "", f"{found.cosine:.4f}", ""))
    classes = [(x, *_recalls(x)) for x in found.classes if x.rows]
    if len(classes) > MAX_CLASSES:
        rows.append((f"  {WORST_CLASSES} of {len(classes)} classes, largest loss", "", "", ""))
        classes = sorted(classes, key=lambda x: x[2] - x[1])[:WORST_CLASSES]
    for x, dense, ours in classes:
        name = "agreement on" if found.against == "given model" else "recall of"
        rows.append(
            (
                f"  {name} '{x.label}' ({x.rows})",
                points(dense),
                points(ours),
                f"{100 * (ours - dense):+.2f} points",
            )
        )
    return rows


def _recalls(found: ClassRecord) -> tuple[float, float]:
    return found.recall.dense or 0.0, found.recall.optimised or 0.0


def _budget_lines(report: Report) -> list[tuple[str, str]]:
    """Lines about the budget, the reason for the choice, and the test rows."""
    lines, certify, test = [], report.scores.certify, report.scores.test
    if report.dropped is not None:
        lines.append(("budget", f"{report.budget}: kept, because the given model is shipped"))
    elif not report.limit:
        lines.append(("budget", f"{report.budget}: only exact passes, nothing to certify"))
    elif report.met:
        text = (
            f"{report.budget} of {report.metric}: loss at most {points(certify.loss_upper)} "
            f"points with {certify.confidence:.0%} confidence "
            f"({certify.rows} certify {unit_of(report)}, {certify.method} bound)"
        )
        lines += [("budget", text), ("why", report.reason)]
    if test is not None:
        text = (
            f"{points(test.loss)} points lost, at most {points(test.loss_upper)} with "
            f"{test.confidence:.0%} confidence ({test.rows} {unit_of(report)} that no choice "
            "was made on)"
        )
        lines.append(("test", text))
    if not report.met:
        lines.append(("not met", report.reason))
        lines.append(("", f"the folder holds the unpruned engine, {report.target}"))
    return lines


def _cascade_rows(cascade: CascadeRecord | None) -> list[Row]:
    if cascade is None:
        return []
    rows = []
    for role, x in cascade.stages.items():
        alone = f"{points(x.first)} and {points(x.second)}"
        rows.append((f"  deferred of the {role} rows", "", f"{100 * x.deferred:.1f}%", ""))
        rows.append(("  first and second model alone", "", alone, ""))
    return rows


def _vocabulary_rows(found: VocabularyRecord | None) -> list[Row]:
    if found is None:
        return []
    other = {"certify": found.other_pieces_certify, "test": found.other_pieces_test}
    changed = [
        (f"  {role} rows with other pieces", "", f"{100 * share:.1f}%", "")
        for role, share in other.items()
        if share is not None
    ]
    before, after = found.pieces_dense, found.pieces
    return [
        ("pieces of the tokenizer", str(before), str(after), percent(after, before)),
        *changed,
    ]


def _mux_rows(mux: MuxRecord | None) -> list[Row]:
    if mux is None:
        return []
    low, high = min(mux.scores), max(mux.scores)
    mean = f"{points(mux.mean)}  [{points(low)}, {points(high)}]"
    share = f"{100 * mux.depends_on_partners:.1f}%"
    return [
        (f"  mean of {len(mux.scores)} draws of partners", "", mean, ""),
        ("  rows that depend on partners", "", share, ""),
    ]


def _speed_rows(report: Report) -> list[Row]:
    dense, ours, serving = report.speed.dense, report.speed.optimised, report.serving
    here = "" if report.costs is None else " here"
    mixed = ", unsorted" if serving.arrivals == "mixed" else ""
    spread = f"[{ours.throughput_ratio_low:.2f}, {ours.throughput_ratio_high:.2f}]"
    name = f"rows/s{here} (batch {serving.batch}, {serving.mean_tokens} tokens{mixed})"
    rows = [
        (
            name,
            f"{dense.rows_per_second:.0f}",
            f"{ours.rows_per_second:.0f}",
            f"{ours.throughput_ratio:.2f}x  {spread}",
        )
    ]
    for name, a, b in (
        ("p50", dense.latency_ms_p50, ours.latency_ms_p50),
        ("p99", dense.latency_ms_p99, ours.latency_ms_p99),
    ):
        rows.append((f"latency {name}, one row (ms)", f"{a:.2f}", f"{b:.2f}", percent(b, a)))
    return rows


def _size_rows(report: Report) -> list[Row]:
    dense, ours, files = report.cost.dense, report.cost.optimised, report.file_bytes
    return [
        (name, millions(a), millions(b), percent(b, a))
        for name, a, b in (
            ("parameters (M)", dense.parameters, ours.parameters),
            (
                "encoder parameters (M)",
                dense.encoder_parameters,
                ours.encoder_parameters,
            ),
            ("multiply-adds a row (M)", dense.macs, ours.macs),
            ("engine file (MB)", files.dense, files.optimised),
        )
    ]
