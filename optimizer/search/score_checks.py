"""Checks of metric, budget and rows before a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prumux.optimizer.certificate.baselines import Judged, check, select_warnings
from prumux.optimizer.certificate.confidence_bounds import accuracy_upper
from prumux.optimizer.certificate.stratified import stratified_upper
from prumux.optimizer.pipeline.pipeline import Pipeline

if TYPE_CHECKING:
    from prumux.optimizer.certificate.budget import Budget
    from prumux.optimizer.tasks.metrics import Predictions

    from .evaluator import Evaluator


def check_scores(
    evaluator: Evaluator, budget: Budget | None, relabelled: bool
) -> tuple[str, ...]:
    """Check metric, budget and rows before the search; return warnings of one line each.

    Args:
        evaluator: scores the given model.
        budget: the budget; None = nothing is certified.
        relabelled: whether the user gave `--labels`.

    Raises:
        UsageError: see `baselines.check`.
    """
    warnings = check(_judged(evaluator, "certify"), budget, relabelled)
    if budget is not None and budget.share > 0:
        warnings += select_warnings(_judged(evaluator, "select"), budget)
    return tuple(warnings)


def provable_by_class(evaluator: Evaluator, limit: float) -> str:
    """A clause for a message: the bound on balanced accuracy's loss if no answer changes."""
    given = _labels(evaluator, "certify")
    assert given is not None, "this metric needs labels"
    labels = evaluator.model.task.all_answers(given)
    none = labels < 0
    least = stratified_upper(labels, none, none, accuracy_upper)
    said = f"with no changed answer they prove {100 * least:.2f}"
    return f": too few of the rarest class, even {said}" if least > limit else f"; {said}"


def _judged(evaluator: Evaluator, role: str) -> Judged:
    dense = evaluator.predictor.predict(Pipeline(()), role)
    return Judged(
        dense, _labels(evaluator, role), evaluator.model.task, evaluator.metric, role
    )


def _labels(evaluator: Evaluator, role: str) -> Predictions | None:
    return evaluator.predictor.rows(role).labels
