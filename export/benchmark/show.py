"""Show the result of `prumux-bench` as a table and as a plot."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import MissingError, UsageError

from .run import Entry

PER_WATT = "rows/s/W"
HEADS = ("", "batch", "rows/s", "p50 ms", "p90 ms", "p99 ms", PER_WATT, "against the first")


def show(report: Mapping[str, Any]) -> None:
    """Print the table. Below it, print the engines and the way they were timed."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else 100
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    table = Table(box=box.SIMPLE_HEAD)
    entries, best = report["entries"], report["best"]
    energy = any(x["rows_per_second_per_watt"] is not None for x in entries)
    heads = [x for x in HEADS if energy or x != PER_WATT]
    for name in heads:
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for x in entries:
        table.add_row(*_cells(x, heads))
    if any(x not in entries for x in best):
        table.add_section()
        for x in best:
            table.add_row(*_cells(x, heads))
    with console.capture() as captured:  # rich would end the process on a closed pipe
        console.print(table)
    print(captured.get(), end="")  # noqa: T201
    lines = [
        f"{name}: {', '.join(f'{k} {v}' for k, v in about.items())}"
        for name, about in report["engines"].items()
    ]
    timing, rounds = report["timing"], report["rounds"]
    lines += [f"length {report['length']}; {timing}; {rounds} rounds"]
    join = report["device"].get("thread_join_us")
    lines += [f"joining two threads: {join} microseconds"] if join else []
    lines += [f"not run: {name}: {why}" for name, why in report["not_run"].items()]
    lines += [f"power: {x}" for x in dict.fromkeys(report["power"].values())]
    print("\n".join(lines))  # noqa: T201


def _cells(x: Mapping[str, Any], heads: Sequence[str]) -> list[str]:
    """A row of the table."""
    low, high = x["throughput_ratio_low"], x["throughput_ratio_high"]
    each = x["rows_per_second_per_watt"]
    name = f"{x['name']}, {x['graph']}" if x["graph"] else x["name"]
    speed = [f"{x['rows_per_second']:.0f}"]
    speed += [f"{x[f'batch_ms_{p}']:.2f}" for p in ("p50", "p90", "p99")]
    if PER_WATT in heads:
        speed.append("-" if each is None else f"{each:.2f}")
    return [
        name,
        str(x["batch"]),
        *speed,
        f"{x['throughput_ratio']:.2f}x  [{low:.2f}, {high:.2f}]",
    ]


def plotter(path: Path) -> Any:
    """Import matplotlib and check `path`, before timing starts.

    Raises:
        MissingError: matplotlib is not installed.
        UsageError: `path` cannot be written, or matplotlib cannot write its file type.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingError("--plot needs matplotlib: pip install 'prumux[plot]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise UsageError(
            f"--plot {path} is of no kind that can be drawn: name it {path.stem}.png\n"
            f"possible: {', '.join(kinds)}"
        )
    there = path.exists()
    try:
        with path.open("ab"):  # "ab" keeps an existing file until the plot is drawn
            pass
    except OSError as error:
        raise UsageError(
            f"--plot {path} cannot be written: {error.strerror}\n"
            f"name a file in a folder of yours: --plot {path.name}"
        ) from error
    if not there:
        path.unlink()
    return plt


def plot(plt: Any, entries: Sequence[Entry], path: Path) -> None:
    """Plot throughput by batch size, one line per engine."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(x.name for x in entries):
        of = [x for x in entries if x.name == name]
        axes.plot([x.batch for x in of], [x.rows_per_second for x in of], "o-", label=name)
    axes.set(xscale="log", xlabel="batch", ylabel="rows per second", ylim=(0, None))
    sizes = sorted({x.batch for x in entries})
    axes.set_xticks(sizes, labels=map(str, sizes), minor=False)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
