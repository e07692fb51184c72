"""How many models must be trained to choose the best model within a budget?

    python bench/predictors.py GRID.json --out bench/results/NAME.json

GRID.json is a result of `bench/frontier.py` for a grid: rows in one pass x sparsity. The
script compares two predictors of a model's loss:

    bilinear   interpolates a coarse grid of models that are trained first, as we recall it
               from Auto-PruMUX (https://arxiv.org/abs/2305.14706)
    ours       trains the models that the search of prumux chooses

For each budget the script reports the number of trained models and the regret. Regret is the
throughput of the best cell, divided by the throughput of the chosen cell; 1 is best. A choice
that exceeds the budget on the recorded rows counts as the given model. The script also
compares the throughput predicted before training with the measured throughput of the finished
engines.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prumux.optimizer.base.environment import provenance
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.accuracy_model import BilinearModel, FitLosses, Shape, fit
from prumux.optimizer.search.acquisition import TimedCandidate, next_candidate
from prumux.optimizer.search.bisection import Trial

NAME = re.compile(r"n(\d+)-s([\d.]+)")
BUDGETS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15)


@dataclass(frozen=True)
class GridCell:
    """A trained model of the grid."""

    slots: int
    sparsity: float
    candidate: TimedCandidate
    """Pipeline and shape, with the throughput predicted before training if it is recorded."""
    loss: float
    throughput: float
    """The measured throughput."""


@dataclass(frozen=True)
class Choice:
    """The cell that a predictor chooses within a budget."""

    cell: GridCell | None
    """None = the given model."""
    trained: int


def cells_of(grid: dict[str, Any]) -> list[GridCell]:
    """Read the cells of a recorded grid. Entries have names such as n2-s0.6.

    Sparsities that were not measured for every number of rows are left out.
    """
    left, found = {}, []
    named = [x for x in grid["entries"] if NAME.fullmatch(x["method"])]
    for entry in sorted(named, key=lambda x: _place(x)[0]):
        slots, sparsity = _place(entry)
        if slots == 1:
            left[sparsity] = entry["macs_share"]
        if sparsity not in left:
            continue
        pipeline = Pipeline.parse(entry["pipeline"])
        at = [getattr(x, "at", 0) for x in pipeline.passes if x.slots > 1]
        mixed = 1 - at[0] / len(entry["layers"]) if at else 0.0
        measured = entry["speed"]["throughput_ratio"]
        predicted = entry["speed"].get("predicted_ratio") or measured
        candidate = TimedCandidate(pipeline, Shape(left[sparsity], slots, mixed), predicted)
        found.append(GridCell(slots, sparsity, candidate, entry["loss"], measured))
    each = Counter(x.sparsity for x in found)
    return [x for x in found if each[x.sparsity] == max(each.values())]


def _place(entry: dict[str, Any]) -> tuple[int, float]:
    name = NAME.fullmatch(entry["method"])
    assert name is not None
    return int(name[1]), float(name[2])


def ours(cells: Sequence[GridCell], budget: float, fitted: FitLosses) -> Choice:
    """Train the cells that the search chooses; return the fastest cell within the budget."""
    candidates = [x.candidate for x in cells]
    tried: dict[int, Trial] = {}
    while (at := next_candidate(candidates, tried, budget, fitted)) is not None:
        loss = cells[at].loss
        tried[at] = Trial(candidates[at].pipeline, 1 - loss, loss, 0.0, 0)
    kept = [cells[i] for i in tried if cells[i].loss <= budget]
    return Choice(max(kept, key=_speed, default=None), len(tried))


def bilinear(cells: Sequence[GridCell], budget: float, corners: Sequence[GridCell]) -> Choice:
    """Train a coarse grid, predict the rest; return the fastest cell within the budget."""
    slots = tuple(sorted({x.slots for x in corners}))
    sparsities = tuple(sorted({x.sparsity for x in corners}))
    known = {(x.slots, x.sparsity): x.loss for x in corners}
    losses = np.array([[known.get((n, s), 0.0) for s in sparsities] for n in slots])
    model = BilinearModel(slots, sparsities, losses)
    kept = [x for x in cells if model.predict(x.slots, x.sparsity) <= budget]
    return Choice(max(kept, key=_speed, default=None), len(corners))


def _speed(cell: GridCell) -> float:
    return cell.candidate.throughput


def regret(cells: Sequence[GridCell], budget: float, choice: Choice) -> float:
    """Throughput of the best cell, divided by the chosen cell's throughput."""
    best = max((x.throughput for x in cells if x.loss <= budget), default=1.0)
    held = choice.cell is not None and choice.cell.loss <= budget
    return best / (choice.cell.throughput if choice.cell and held else 1.0)


def corner_grids(cells: Sequence[GridCell]) -> list[list[GridCell]]:
    """The cells of each coarse grid that spans the whole grid."""
    slots = sorted({x.slots for x in cells})
    sparsities = sorted({x.sparsity for x in cells})
    found = []
    for ns in _spanning(slots):
        for ss in _spanning(sparsities):
            found.append([x for x in cells if x.slots in ns and x.sparsity in ss])
    return found


def _spanning(values: Sequence[Any]) -> list[tuple[Any, ...]]:
    inner = values[1:-1]
    return [
        (values[0], *some, values[-1])
        for k in range(len(inner) + 1)
        for some in itertools.combinations(inner, k)
    ]


def enough_for_all(cells: Sequence[GridCell]) -> int | None:
    """Size of the smallest coarse grid that finds the best cell at every budget.

    A user does not know this grid beforehand. So bilinear needs at least as many trained
    models.
    """
    sizes = []
    for corners in corner_grids(cells):
        chosen = [(x, bilinear(cells, x, corners)) for x in BUDGETS]
        if all(regret(cells, x, y) <= 1 and not broken(x, y) for x, y in chosen):
            sizes.append(len(corners))
    return min(sizes, default=None)


def broken(budget: float, choice: Choice) -> bool:
    """True if the chosen cell exceeds the budget."""
    return choice.cell is not None and choice.cell.loss > budget


def left_out(cells: Sequence[GridCell], fitted: FitLosses) -> dict[str, float]:
    """Mean absolute error of a cell's loss, predicted from the other cells.

    Both predictors are compared on the inner cells, because bilinear cannot extrapolate. The
    predictor `ours` is also measured on all cells.
    """
    errors: dict[str, list[float]] = {"ours": [], "bilinear": [], "ours, all": []}
    inner = [x for x in cells if _is_inner(x, cells)]
    for cell in cells:
        others = [x for x in cells if x is not cell]
        shapes, losses = [x.candidate.shape for x in others], [x.loss for x in others]
        belief = fitted(shapes, losses).predict(cell.candidate.shape)
        errors["ours, all"].append(abs(belief.loss - cell.loss))
        if cell not in inner:
            continue
        errors["ours"].append(errors["ours, all"][-1])
        near = [x for x in others if x.slots != cell.slots and x.sparsity != cell.sparsity]
        found = bilinear_loss(cell, near)
        errors["bilinear"].append(abs(found - cell.loss))
    return {name: float(np.mean(x)) for name, x in errors.items()} | {"cells": len(inner)}


def bilinear_loss(cell: GridCell, others: Sequence[GridCell]) -> float:
    """Interpolate the cell's loss from the grid without the cell's row and column."""
    slots = tuple(sorted({x.slots for x in others}))
    sparsities = tuple(sorted({x.sparsity for x in others}))
    known = {(x.slots, x.sparsity): x.loss for x in others}
    losses = np.array([[known.get((n, s), 0.0) for s in sparsities] for n in slots])
    return BilinearModel(slots, sparsities, losses).predict(cell.slots, cell.sparsity)


def throughput_off(grid: dict[str, Any]) -> dict[str, float]:
    """Relative error of the predicted throughput, for each entry that has a prediction."""
    speeds = {x["method"]: x["speed"] for x in grid["entries"]}
    known = {name: x for name, x in speeds.items() if x.get("predicted_ratio")}
    return {
        name: x["predicted_ratio"] / x["throughput_ratio"] - 1 for name, x in known.items()
    }


def _is_inner(cell: GridCell, cells: Sequence[GridCell]) -> bool:
    slots, sparsities = {x.slots for x in cells}, {x.sparsity for x in cells}
    low, high = min(slots), max(slots)
    return low < cell.slots < high and min(sparsities) < cell.sparsity < max(sparsities)


def main() -> None:
    """Compare both predictors, write the JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=2, help="labels of the grid's task")
    options = parser.parse_args()
    grid = json.loads(options.grid.read_text(encoding="utf-8"))
    cells, score = cells_of(grid), grid["entries"][0]["score"]
    guessed = score["score_dense"] - 1 / options.classes
    fitted = partial(fit, rows=score["rows"], ceiling=guessed)
    entries: list[dict[str, Any]] = []
    for budget in BUDGETS:
        mine = ours(cells, budget, fitted)
        others = [bilinear(cells, budget, corners) for corners in corner_grids(cells)]
        entries.append(
            {
                "budget": budget,
                "ours": {"trained": mine.trained, "regret": regret(cells, budget, mine)},
                "bilinear": [
                    {
                        "trained": x.trained,
                        "regret": regret(cells, budget, x),
                        "broken": broken(budget, x),
                    }
                    for x in others
                ],
            }
        )
    found = {
        "schema_version": 1,
        "cells": [{**asdict(x), "candidate": str(x.candidate.pipeline)} for x in cells],
        "left_out_error": left_out(cells, fitted),
        "bilinear_for_all_budgets": enough_for_all(cells),
        "throughput_off": throughput_off(grid),
        "entries": entries,
        **provenance(),
    }
    options.out.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")
    show(found)


def show(found: dict[str, Any]) -> None:
    """Print the result as a table."""
    if off := found["throughput_off"]:
        worst = max(off, key=lambda x: abs(off[x]))
        line = f"throughput of {len(off)} entries predicted; worst {worst}: {off[worst]:+.1%}"
        print(line, file=sys.stderr)  # noqa: T201
    for x in found["entries"]:
        mine, full = x["ours"], x["bilinear"]
        enough = [
            y["trained"] for y in full if y["regret"] <= mine["regret"] and not y["broken"]
        ]
        line = f"budget {100 * x['budget']:4.1f} %: ours {mine['trained']:2} trained, "
        line += f"regret {mine['regret']:.2f}; bilinear needs "
        print(line + str(min(enough, default="more than all")), file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
