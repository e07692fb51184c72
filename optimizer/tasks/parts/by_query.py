"""The methods of a task whose rows belong to queries; by default each row stands alone."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.tasks.metrics import Floats, Predictions


class ByQuery:
    """Scores that are taken by query: a part of `Task`. N rows."""

    name: ClassVar[str]
    group_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that may say which query a row is of, where rows are scored by query."""
    unit: ClassVar[str] = "rows"
    """The unit that scores are averaged over, in messages."""

    def with_groups(self, values: Predictions, groups: NDArray[np.int64]) -> Predictions:
        """Predictions or labels that know which query each row is of, [N]."""
        del groups
        return values

    def telling_rows(self, labels: Predictions) -> NDArray[np.bool_]:
        """Rows of queries that a ranking is judged by, [N]."""
        return np.ones(len(labels), dtype=np.bool_)

    def row_scores(self, metric: str, predictions: Predictions, labels: Predictions) -> Floats:
        """The scores in [0, 1] whose mean is a metric with the statistic `mean`.

        Each is an independent draw, such as a query. Arguments as in `scorer`.
        """
        raise UsageError(f"metric '{metric}' of {self.name} is no mean of scores")

    def draws(self, predictions: Predictions) -> NDArray[np.int64] | None:
        """The independent draw that each row belongs to, from 0, [N]; None = each is one."""
        del predictions
        return None
