"""Checks of metric, budget and rows around a search, on a bench."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prumux.optimizer.pipeline.pipeline import Pipeline

from .baselines import Judged, check, select_warnings
from .certificate import accuracy_upper
from .stratified import stratified_upper

if TYPE_CHECKING:
    from prumux.optimizer.tasks.metrics import Predictions

    from .evaluator import Bench


def before(bench: Bench) -> tuple[str, ...]:
    """Warnings before the search, each a line.

    Raises:
        UsageError: see `baselines.check`.
    """
    request = bench.request
    warnings = check(_judged(bench, "certify"), request.budget, bool(request.labels))
    if request.budget is not None and request.budget.points > 0:
        warnings += select_warnings(_judged(bench, "select"), request.budget)
    return tuple(warnings)


def provable_by_class(bench: Bench, limit: float) -> str:
    """What the rows of each class prove of balanced accuracy where no answer changes."""
    given = _labels(bench, "certify")
    assert given is not None, "this metric needs labels"
    labels = bench.model.task.all_answers(given)
    none = labels < 0
    least = stratified_upper(labels, none, none, accuracy_upper)
    said = f"with no changed answer they prove {100 * least:.2f}"
    return f": too few of the rarest class, even {said}" if least > limit else f"; {said}"


def _judged(bench: Bench, role: str) -> Judged:
    dense = bench.outputs(Pipeline(()), role)[0]
    return Judged(dense, _labels(bench, role), bench.model.task, bench.metric, role)


def _labels(bench: Bench, role: str) -> Predictions | None:
    rows = {
        "select": bench.select_rows,
        "certify": bench.certify_rows,
        "test": bench.test_rows,
    }[role]
    return None if rows is None else rows.labels
