"""Plans certificates: computes the certifiable loss, and the number of rows for a loss."""

from __future__ import annotations

from functools import lru_cache

from prumux.optimizer.base.errors import UsageError

from .confidence_bounds import accuracy_upper, crossing


@lru_cache(maxsize=1024)
def provable_loss(
    rows: int, limit: float, disagreement: float = 0.05, confidence: float = 0.95
) -> float:
    """The largest observed loss of accuracy that `rows` rows can certify.

    Args:
        rows: number of certify rows.
        limit: the allowed loss.
        disagreement: share of rows that exactly one of the two models answers correctly.
        confidence: one-sided.

    Returns:
        The loss. If negative, only a model that is better than the given one by this amount
        can be certified. If -1, no model can be certified.
    """

    def fails(loss: float) -> bool:
        changed = max(disagreement, abs(loss))
        worse, better = rows * (changed + loss) / 2, rows * (changed - loss) / 2
        return rows < 1 or accuracy_upper(rows, worse, better, confidence) > limit

    if fails(-1.0):
        return -1.0
    # `crossing` returns the smallest failing loss, rounded up. A slightly smaller one passes.
    return max(crossing(fails, -1.0, 1.0) - 1e-9, -1.0)


def rows_needed(
    limit: float, loss: float = 0.0, disagreement: float = 0.05, confidence: float = 0.95
) -> int:
    """The fewest rows that can certify an observed loss of accuracy; see `provable_loss`.

    Raises:
        UsageError: the loss is not below the limit, so no number of rows is enough.
    """
    if loss >= limit:
        raise UsageError(
            f"no number of rows certifies an observed loss of {loss:.2%} within {limit:.2%}: "
            f"use a budget above {loss:.2%}"
        )
    enough = 1
    while provable_loss(enough, limit, disagreement, confidence) < loss:
        enough *= 2
    low = enough // 2
    while enough - low > 1:
        middle = (low + enough) // 2
        short = provable_loss(middle, limit, disagreement, confidence) < loss
        low, enough = (middle, enough) if short else (low, middle)
    return enough
