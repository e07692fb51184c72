"""The table at the end, with all results in the work folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .study import fastest, means
from .work import Facts, Work

MOST_FAILURES = 12
"""Largest number of failures to show. The work folder has all failures."""


def lines(work: Work) -> list[str]:
    """Format the table, part by part. Empty parts are left out."""
    found = [*_head(work), *engines(work), *costs(work), *budgets(work), *study(work)]
    failed = [
        f"{x['name']}: {x['failed']}"
        for part in "abcd"
        for x in work.results(part)
        if "failed" in x
    ]
    if failed:
        found += ["", f"failed ({len(failed)}; --retry makes them again)"]
        found += failed[:MOST_FAILURES]
    return found


def _head(work: Work) -> list[str]:
    facts = work.facts
    versions = ", ".join(f"{k} {v}" for k, v in facts.get("versions", {}).items())
    return [
        f"device    {facts.get('name', 'unknown')}",
        f"command   {facts.get('command', '')}",
        f"commit    {facts.get('commit', 'unknown')}, {facts.get('date', '')}",
        f"versions  {versions}",
    ]


def engines(work: Work) -> list[str]:
    """Part a: a row for each engine and shape, at the engine's fastest batch size."""
    results = [x for x in work.results("a") if x.get("points")]
    missing = (work.read("a-missing") or {}).get("missing", {})
    if not results and not missing:
        return []
    found = ["", "a. engines: host to host, wall clock, at each engine's fastest batch;"]
    found.append("least = time of its smallest batch")
    lengths = sorted({p["length"] for x in results for p in x["points"]})
    for length in lengths:
        best = [(x, p) for x in results if (p := _best(x, length)) is not None]
        base = {x["shape"]: p for x, p in reversed(best) if _is_dense_torch(x)}
        head = f"{'shape':<10}{'cut':>5}{'n':>4}  {'engine':<14}{'batch':>6}{'rows/s':>10}"
        head += f"{'of torch':>10}{'ceiling':>9}{'least, ms':>11}  logits"
        found += ["", f"{length} tokens", head]
        for x, p in sorted(best, key=lambda y: _order(y[0])):
            dense = base.get(x["shape"])
            ratio = "" if dense is None else f"{_rate(p) / _rate(dense):.2f}x"
            parity = x["parity"]
            holds = "within" if parity["holds"] else "BEYOND"
            found.append(
                f"{x['shape']:<10}{x['sparsity']:>5.0%}{x['n']:>4}  {x['kind']:<14}"
                f"{p['batch']:>6}{_rate(p):>10.0f}{ratio:>10}{p['ceiling_share']:>9.1%}"
                f"{_least_ms(x, length):>11.3g}  "
                f"{holds} {parity['limit']:.2g} ({parity['max_abs_diff']:.2g})"
            )
    tops = sorted({round(x["ceiling_tflops"], 2) for x in results})
    if tops:
        found.append(f"matrix product: {tops[0]:g} to {tops[-1]:g} TFLOPS, beside each engine")
    return [*found, *(f"not here: {k}: {v}" for k, v in missing.items())]


def _rate(point: Mapping[str, Any]) -> float:
    return float(point["rows_per_second"])


def _best(item: Facts, length: int) -> Facts | None:
    points = [p for p in item["points"] if p["length"] == length]
    return max(points, key=_rate, default=None)


def _least_ms(item: Facts, length: int) -> float:
    points = (p for p in item["points"] if p["length"] == length)
    return float(min(points, key=lambda p: p["batch"])["ms"])


def _is_dense_torch(item: Facts) -> bool:
    plain = item["sparsity"] == 0 and item["n"] == 1
    return plain and str(item["kind"]).startswith("torch")


def _order(item: Facts) -> tuple[Any, ...]:
    return item["shape"], item["sparsity"], item["n"], item["kind"]


def costs(work: Work) -> list[str]:
    """Part b: a row for each target."""
    results = [x for x in work.results("b") if "targets" in x]
    if not results:
        return []
    found = ["", "b. costs for prumux-opt --costs"]
    found.append(f"{'shape':<10}{'target':<32}{'dense, ms':>10}{'error':>7}  mix    file")
    for x in results:
        for target, y in x["targets"].items():
            found.append(
                f"{x['shape']:<10}{target:<32}{y['dense_ms']:>10.3g}{y['error']:>7.1%}  "
                f"{x['mix']:<6} {x['file']}"
            )
    return found


def budgets(work: Work) -> list[str]:
    """Part c: a row for each budget."""
    results = [x for x in work.results("c") if "pipeline" in x]
    if not results:
        return []
    found = ["", "c. budgets, run on this device"]
    for x in results:
        test = "no test rows" if x["test_loss"] is None else f"test {100 * x['test_loss']:.2f}"
        met = "" if x["met"] else "NOT MET, the given model: "
        found.append(
            f"{x['budget']:<4} {met}{x['throughput_ratio']:.2f}x dense "
            f"({x['rows_per_second']:.0f} rows/s, batch {x['serving']['batch']}), loss at "
            f"most {100 * x['loss_upper']:.2f} points of {x['metric']}, {test}; {x['target']}"
        )
        found.append(f"     {x['pipeline'] or '(dense)'}")
    return found


def study(work: Work) -> list[str]:
    """Part d: accuracy and throughput of each cell, and the fastest cell at each accuracy."""
    cells = means(work.results("d"))
    if not cells:
        return []
    found = [
        "",
        "d. pruned and multiplexed: score in points [over seeds], throughput of dense",
    ]
    for task in dict.fromkeys(x["task"] for x in cells):
        mine = [x for x in cells if x["task"] == task]
        found += [f"{task}, dense {100 * mine[0]['score_dense']:.2f}", *_grid(mine)]
        for least, best in fastest(cells, task):
            if best is None:
                text = "no cell"
            else:
                text = (
                    f"{best['throughput_ratio']:.2f}x, {best['rows_per_second']:.0f} rows/s "
                    f"({best['sparsity']:.0%} cut, n={best['n']}, {100 * best['score']:.2f})"
                )
            found.append(f"  fastest at {100 * least:.1f}: {text}")
    return found


def _grid(cells: Sequence[Facts]) -> list[str]:
    mixed = sorted({x["n"] for x in cells})
    known = {(x["sparsity"], x["n"]): x for x in cells}
    lines_ = [f"{'cut':>5}" + "".join(f"{f'n={n}':>28}" for n in mixed)]
    for sparsity in sorted({x["sparsity"] for x in cells}):
        row = f"{sparsity:>5.0%}"
        for n in mixed:
            x = known.get((sparsity, n))
            text = "" if x is None else _cell(x)
            row += f"{text:>28}"
        lines_.append(row)
    return lines_


def _cell(x: Facts) -> str:
    low, high = 100 * x["low"], 100 * x["high"]
    spread = f" [{low:.1f}, {high:.1f}]" if x["seeds"] > 1 else ""
    return f"{100 * x['score']:.1f}{spread} {x['throughput_ratio']:.1f}x"
