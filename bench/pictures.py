"""Draw the two pictures of the main README from committed results.

    python bench/pictures.py --out bench/pictures
    python bench/pictures.py --out bench/pictures --browser chromium

`frontier.png` shows lost accuracy points and throughput for each budget. The points are from
the report of each run. The throughputs are from one run of `prumux-bench`, which timed all
engines side by side. `report.png` is the top of the report of the 2 % run, shown by a headless
Chromium. `report.png` is only drawn with `--browser`, the name of the program.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prumux.optimizer.report.build import write_html
from prumux.optimizer.report.encoding import report_of

RESULTS = Path(__file__).parent / "results"
BENCH = "sst2-budgets-bench-2cpu.json"
REPORTS = tuple(f"sst2-budget{x}-2cpu.json" for x in (1, 2, 5, 10))
PAGE = "sst2-budget2-2cpu.json"
PAGE_SIZE = (1000, 1064)
"""Width and height of the visible part of the page, in CSS pixels."""
BLUE, GREEN, RED, GREY = "#0b5cad", "#1a7f37", "#b42318", "#57606a"
LABELS = (
    "slowest to fastest round",
    "to the loss's upper bound, 95 % confidence",
    "loss on the rows that certify",
    "loss on the test rows",
)


@dataclass(frozen=True)
class Shipped:
    """The shipped model of one run. Losses are in accuracy points, throughput is relative."""

    budget: str
    budget_points: float
    certified: float
    bound: float
    test: float
    test_bound: float
    throughput: float
    low: float
    high: float

    @classmethod
    def read(cls, report: dict[str, Any], entries: dict[str, dict[str, Any]]) -> Self:
        """Join a run's report with its entry in the bench run, by the artifact folder."""
        words = report["command"].split()
        entry = entries[words[words.index("--out") + 1]]
        certify, test = report["scores"]["certify"], report["scores"]["test"]
        return cls(
            budget=report["budget"],
            budget_points=100 * report["limit"],
            certified=100 * certify["loss"],
            bound=100 * certify["loss_upper"],
            test=100 * test["loss"],
            test_bound=100 * test["loss_upper"],
            throughput=entry["throughput_ratio"],
            low=entry["throughput_ratio_low"],
            high=entry["throughput_ratio_high"],
        )


def read_all(results: Path = RESULTS) -> list[Shipped]:
    """Read the shipped model of every budget from the committed results."""
    timed = json.loads((results / BENCH).read_text(encoding="utf-8"))
    entries = {x["name"]: x for x in timed["entries"]}
    reports = [json.loads((results / x).read_text(encoding="utf-8")) for x in REPORTS]
    return [Shipped.read(x, entries) for x in reports]


def draw_frontier(shipped: list[Shipped], path: Path) -> None:
    """Plot throughput relative to the given model (log scale) against lost accuracy points."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure, axes = plt.subplots(figsize=(7.6, 4.4))
    axes.set_yscale("log")
    axes.plot(0, 1, "s", color="black", markersize=7)
    axes.annotate("given model, fp32", (0, 1), (9, -3), textcoords="offset points")
    for i, x in enumerate(shipped):
        names = LABELS if i == 0 else (None,) * len(LABELS)
        y = x.throughput
        axes.plot([x.certified] * 2, [x.low, x.high], color=BLUE, alpha=0.5, label=names[0])
        axes.plot([x.certified, x.bound], [y, y], color=GREEN, linewidth=2, label=names[1])
        axes.plot(x.bound, y, "|", color=GREEN, markersize=11, markeredgewidth=2)
        axes.plot(x.certified, y, "o", color=BLUE, markersize=7, label=names[2])
        axes.plot(
            x.test, y, "o", color=GREY, markerfacecolor="white", zorder=1.5, label=names[3]
        )
        axes.plot(x.budget_points, y, "|", color=RED, markersize=26, markeredgewidth=2)
        text = f"budget {x.budget.replace('%', ' %')}: {y:.3g}x"
        axes.annotate(text, (x.budget_points, y), (7, -4), textcoords="offset points")
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_major_locator(FixedLocator([0, *(x.budget_points for x in shipped)]))
    axes.set(xlabel="accuracy points lost", ylabel="throughput, given model = 1")
    axes.set_xlim(-0.4, 1.33 * max(x.budget_points for x in shipped))
    axes.set_ylim(0.8, 1.25 * max(x.high for x in shipped))
    axes.grid(color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, format="png", dpi=130, bbox_inches="tight", metadata={"Software": ""})


def draw_report(report: Path, browser: str, path: Path) -> None:
    """Show the top of a report in a headless browser, and save it in 128 colours."""
    from PIL import Image

    values = json.loads(report.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_html(report_of(values, str(report)), Path(folder))
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={folder}/profile",
                "--window-size={},{}".format(*PAGE_SIZE),
                f"--screenshot={path.resolve()}",
                (Path(folder) / "report.html").as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )  # fmt: skip
    with Image.open(path) as shown:
        shown.convert("RGB").quantize(128).save(path, optimize=True)


def main() -> None:
    """Write the pictures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--browser", help="Chromium's program; without it no report.png")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    draw_frontier(read_all(), options.out / "frontier.png")
    if options.browser:
        draw_report(RESULTS / PAGE, options.browser, options.out / "report.png")


if __name__ == "__main__":
    main()
