"""The comparison of predictors, on a made-up grid."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from prumux.optimizer.search.accuracy_model import fit
from tests.helpers.scripts import script

predictors = script("predictors")

LOSS = {
    (1, 0.5): 0.005, (1, 0.8): 0.02, (1, 0.9): 0.06,
    (2, 0.5): 0.015, (2, 0.8): 0.06, (2, 0.9): 0.15,
    (5, 0.5): 0.05, (5, 0.8): 0.3, (5, 0.9): 0.4,
}  # fmt: skip
FITTED = partial(fit, rows=2000, ceiling=0.4)


def grid(wrong: float = 1.0) -> dict[str, Any]:
    """As `bench/frontier.py` writes it; all throughput is predicted wrong by this factor."""
    entries = []
    for (slots, sparsity), loss in LOSS.items():
        measured = slots**0.5 / (1.02 - sparsity)
        mux = f",mux{{n={slots} at=1}}" if slots > 1 else ""
        entries.append(
            {
                "method": f"n{slots}-s{sparsity:g}",
                "pipeline": f"prune{{sparsity={sparsity:g}}},slice{mux},distill",
                "macs_share": 1 - sparsity,
                "layers": [{}] * 4,
                "loss": loss,
                "speed": {
                    "throughput_ratio": measured,
                    "predicted_ratio": wrong * measured,
                },
            }
        )
    return {"entries": entries}


def test_cells_are_read_and_the_best_is_found_from_few() -> None:
    cells = predictors.cells_of(grid())
    assert [(x.slots, x.sparsity) for x in cells] == list(LOSS)
    assert cells[-1].candidate.shape.mixed == 0.75
    for budget in (0.01, 0.02, 0.06):
        choice = predictors.ours(cells, budget, FITTED)
        assert predictors.regret(cells, budget, choice) == 1
        assert choice.trained < len(cells)
        corners = predictors.bilinear(cells, budget, cells)
        assert predictors.regret(cells, budget, corners) == 1, "it knows all of them"


def test_a_choice_that_breaks_the_budget_is_worth_nothing() -> None:
    cells = predictors.cells_of(grid())
    choice = predictors.Choice(cells[-1], 4)
    assert predictors.broken(0.06, choice)
    best = max(x.throughput for x in cells if x.loss <= 0.06)
    assert predictors.regret(cells, 0.06, choice) == best


def test_predicted_throughput_chooses_and_measured_judges() -> None:
    assert all(x == pytest.approx(0.1) for x in predictors.throughput_off(grid(1.1)).values())
    cell = predictors.cells_of(grid(1.1))[0]
    assert cell.candidate.throughput == pytest.approx(1.1 * cell.throughput)
    old = grid()
    for entry in old["entries"]:
        del entry["speed"]["predicted_ratio"]
    assert predictors.throughput_off(old) == {}
    assert predictors.cells_of(old)[0].candidate.throughput == cell.throughput


def test_left_out_cells_are_predicted_from_the_others() -> None:
    found = predictors.left_out(predictors.cells_of(grid()), FITTED)
    assert found["cells"] == 1, "inside the grid"
    assert 0 <= found["ours"] < 0.1
    assert 0 <= found["bilinear"] < 0.1
