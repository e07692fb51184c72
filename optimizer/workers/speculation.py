"""Speculation: find the next trials of a search by replaying it on assumed answers.

The decisions of a search depend only on answers: losses of trials, and certificates.
`items_ahead` replays the search on the known answers. If the replay needs the unknown loss of
a candidate, it branches: one branch assumes a loss within the limit, the other a loss above
it. Each replay ends at the first unknown trial or certificate, which becomes an item. Workers
compute the items and put the results into the store. The search finds them there, so it makes
the same decisions as without workers, but sooner.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.bisection import Certify, SearchResult, Trial

Try = Callable[[Pipeline], Trial]
Search = Callable[[Try, Certify, Callable[[Pipeline], bool]], SearchResult]
"""A search as a function of `trial`, `certify` and `out_of_time`."""
LOST, KEPT = 2.0, 0.5
"""Assumed losses, as multiples of the limit. LOST is assumed first, because most first trials
of the default space lose too much."""
REPLAYS = 6
"""Number of replays of the search for each wanted item, at most."""


@dataclass(frozen=True)
class WorkItem:
    """A trial, or the predictions that a certificate needs."""

    kind: Literal["trial", "proof"]
    pipeline: Pipeline

    def __str__(self) -> str:
        return f"{self.kind} of {self.pipeline}"


Answers = Mapping[WorkItem, float]
"""Assumed answers: the loss of each trial. Listed certificates are assumed to hold."""


class _AskedError(Exception):
    """Error that ends a replay which needs an unknown answer."""

    def __init__(self, item: WorkItem) -> None:
        super().__init__(str(item))
        self.item = item


def items_ahead(
    search: Search,
    tried: Callable[[Pipeline], Trial | PassError | None],
    proofs: Mapping[Pipeline, Certificate],
    limit: float,
    count: int,
) -> list[WorkItem]:
    """The next items that a search may need, the nearest first.

    Args:
        search: the search, which must not depend on a clock.
        tried: gives the finished trial of a candidate, or its error; None = not tried.
        proofs: finished certificates.
        limit: the allowed loss.
        count: largest number of items.
    """
    found = dict[WorkItem, None]()
    branches = deque[Answers]([{}])
    for _ in range(REPLAYS * count):
        if not branches or len(found) >= count:
            break
        assumed = branches.popleft()
        item = _next_item(search, tried, proofs, assumed, limit)
        if item is not None:
            found[item] = None
            losses = (LOST * limit, KEPT * limit) if item.kind == "trial" else (0.0,)
            branches += [{**assumed, item: loss} for loss in losses]
    return list(found)


def _next_item(
    search: Search,
    tried: Callable[[Pipeline], Trial | PassError | None],
    proofs: Mapping[Pipeline, Certificate],
    assumed: Answers,
    limit: float,
) -> WorkItem | None:
    """The first item that a search needs and that is neither known nor assumed."""

    def trial(pipeline: Pipeline) -> Trial:
        known = tried(pipeline)
        if isinstance(known, PassError):
            raise PassError(str(known), known.exit_code)
        if known is not None:
            return known
        if (loss := assumed.get(item := WorkItem("trial", pipeline))) is None:
            raise _AskedError(item)
        return Trial(pipeline, 1 - loss, loss, 0.0, 0)

    def certify(pipeline: Pipeline, confidence: float) -> Certificate:
        if pipeline in proofs:
            return proofs[pipeline]
        if (item := WorkItem("proof", pipeline)) not in assumed:
            raise _AskedError(item)
        return Certificate("", 0, 1.0, 1.0, 0.0, -math.inf, confidence, limit, "assumed")

    try:
        search(trial, certify, lambda _: False)
    except _AskedError as asked:
        return asked.item
    except PassError:  # the search itself would end here
        pass
    return None
