"""Methods of tasks whose rows belong to queries. By default, rows are independent."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.tasks.metrics import Floats, Predictions


class ByQuery:
    """A part of `Task`: scores by query. Axis letter: N rows."""

    name: ClassVar[str]
    group_columns: ClassVar[tuple[str, ...]] = ()
    """Possible names of the query column, for tasks that score rows by query."""
    unit: ClassVar[str] = "rows"
    """The unit that scores are averaged over, for messages."""

    def with_groups(self, values: Predictions, groups: NDArray[np.int64]) -> Predictions:
        """Predictions or labels, combined with the query number of each row, [N]."""
        del groups
        return values

    def telling_rows(self, labels: Predictions) -> NDArray[np.bool_]:
        """True for rows of queries with a relevant passage, [N]; by default for all rows."""
        return np.ones(len(labels), dtype=np.bool_)

    def row_scores(self, metric: str, predictions: Predictions, labels: Predictions) -> Floats:
        """The scores in [0, 1] whose mean is a metric with the statistic `mean`.

        Each score belongs to an independent draw, such as a query. The arguments are those of
        `Task.scorer`.
        """
        raise UsageError(f"metric '{metric}' of {self.name} is no mean of scores")

    def draws(self, predictions: Predictions) -> NDArray[np.int64] | None:
        """The number of each row's independent draw, [N]; None = each row is a draw."""
        del predictions
        return None
