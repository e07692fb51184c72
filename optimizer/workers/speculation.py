"""Speculation: finds the next trials of a search by replaying it on assumed answers.

A search is a function of its answers: losses of trials, and certificates. `items_ahead` runs
it on the known answers. Where it asks for an unknown one, the replay goes on twice: once
assuming that the candidate keeps the limit, once that it does not. Workers compute the
collected items and put the results into the store, where the search finds them. So it decides
as it would alone, only sooner.
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
"""Assumed losses, in shares of the limit. LOST comes first, because the first trials of the
default space mostly lose too much."""
REPLAYS = 6
"""Replays of the search for each wanted item, at most."""


@dataclass(frozen=True)
class WorkItem:
    """A trial, or the predictions that a certificate needs."""

    kind: Literal["trial", "proof"]
    pipeline: Pipeline

    def __str__(self) -> str:
        return f"{self.kind} of {self.pipeline}"


Answers = Mapping[WorkItem, float]
"""Assumed answers: the loss of a trial; a certificate that is listed holds."""


class _AskedError(Exception):
    """A search asks for an unknown answer."""

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
    """The next items that a search may ask for, the nearest first.

    Args:
        search: must not depend on a clock.
        tried: the finished trial of a candidate, or its error; None = not tried.
        proofs: finished certificates.
        limit: the allowed loss.
        count: number of items, at most.
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
    """The first item that a search asks for and that is neither known nor assumed."""

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
