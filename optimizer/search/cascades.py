"""Cascades of tried candidates: a fast model answers first, a safer one the unsure rows.

Cascades need no training. The answers of both stages on the select rows are known, so cost and
expected loss of a cascade can be computed for any threshold t:

    cost = first stage + share deferred x second stage
    answer(x) = second(x) if m(x) < t, else first(x)

Here m(x) is the margin of row x in the first stage. Share and loss are those expected on
unseen rows, see `unseen_loss.py`. A cascade becomes a candidate if it is cheaper than all
single candidates of at least its chance of a certificate. Neither candidates' answers to
certify rows nor a clock decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import PassError, SpecError, UsageError
from prumux.optimizer.base.store import key
from prumux.optimizer.model.cascade import threshold_at
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import find_pass

from .bisection import Extend, Trial
from .certification_order import cheaper_and_cheaper
from .evaluator import Evaluator
from .presets import exact_pipeline
from .unseen_loss import Floats, LossEstimate, estimate_loss, select_weights

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""Shares of deferred select rows to try."""
LEAST_GAIN = 1.25
"""Smallest ratio of the multiply-adds of single candidates to a cascade's.

The second stage runs on few rows at a time, and is up to 6 % slower than the multiply-adds
predict."""
LEAST_CHANCE = 0.05
"""Smallest chance of a certificate with which a cascade is tried."""
STEP = 1.1
"""Smallest ratio of the multiply-adds of one cascade to the next."""


@dataclass(frozen=True)
class _Option:
    """A cascade that could be tried."""

    pipeline: Pipeline
    macs: float
    estimate: LossEstimate


def cascade_maker(evaluator: Evaluator, limit: float, most: int) -> Extend:
    """An `Extend` that makes at most `most` cascades for a limit of the loss."""
    return lambda tried, most_macs: cascade_candidates(
        evaluator, tried, limit, most, math.inf if most_macs is None else most_macs
    )


def cascade_candidates(
    evaluator: Evaluator,
    tried: Sequence[Trial],
    limit: float,
    most: int,
    most_macs: float = math.inf,
) -> tuple[Pipeline, ...]:
    """The cascades of tried candidates to try next, the surest first.

    Args:
        evaluator: the evaluator that built and scored the candidates.
        tried: finished trials.
        limit: the allowed loss.
        most: the largest number of cascades.
        most_macs: multiply-adds that all cascades must undercut by `LEAST_GAIN`.
    """
    if any(evaluator.tried(x.pipeline) is None for x in tried):
        return ()  # a replay for workers has assumed losses only
    if not tried or not _possible(evaluator):
        return ()
    about = (*(str(x.pipeline) for x in tried), limit, most, most_macs, evaluator.targets[0])

    def choose() -> list[str]:
        options = (
            x for x in _Stages(evaluator, tried).options() if x.macs * LEAST_GAIN <= most_macs
        )
        return [str(x.pipeline) for x in _best(evaluator, tried, options, limit, most)]

    found = evaluator.ctx.store.json(f"cascades-{key(*about)}", choose)
    return tuple(Pipeline.parse(x) for x in found)


def _best(
    evaluator: Evaluator,
    tried: Sequence[Trial],
    options: Iterator[_Option],
    limit: float,
    most: int,
) -> list[_Option]:
    """Options that pay, each at least `STEP` cheaper than the one before."""
    rows = evaluator.certify_rows.scored_rows

    def chance(x: Trial | _Option) -> float:
        return x.estimate.chance(limit, rows)

    singles = [(chance(x), x.macs) for x in tried]

    def pays(x: _Option) -> bool:
        mine = chance(x)
        rivals = [macs for other, macs in singles if other >= mine]
        return mine >= LEAST_CHANCE and all(x.macs * LEAST_GAIN <= macs for macs in rivals)

    kept: list[_Option] = []
    for one in cheaper_and_cheaper(filter(pays, options), chance):
        if not kept or one.macs * STEP <= kept[-1].macs:
            kept.append(one)
    # The surest ones of many would all be slow.
    at = np.linspace(0, len(kept) - 1, min(most, len(kept))).round().astype(int)
    return [kept[i] for i in at]


def bag_candidate(evaluator: Evaluator) -> Pipeline | None:
    """The bag of embeddings, a model without layers; None if it cannot be made or timed."""
    if evaluator.ctx.costs is not None or evaluator.ctx.fit.groups is not None:
        return None
    try:
        found = find_pass("bag")()
        found.check_given(evaluator.model)
    except (UsageError, SpecError, PassError):
        return None
    return Pipeline((found,))


def _possible(evaluator: Evaluator) -> bool:
    """True if the task, the target and the installed passes allow cascades."""
    try:
        evaluator.target.check_stages()
        find_pass("cascade")().check_given(evaluator.model)
    except (UsageError, SpecError, PassError):
        return False
    return True


@dataclass(frozen=True)
class _Stages:
    """Tried candidates as stages of cascades."""

    evaluator: Evaluator
    tried: Sequence[Trial]

    def options(self) -> Iterator[_Option]:
        """Every cascade of two tried candidates whose second stage mixes no rows."""
        exact = exact_pipeline()
        seconds = {exact: float(self.evaluator.builder.cost(exact).macs)}
        for x in self.tried:
            if all(y.slots <= 1 and not y.last for y in x.pipeline.passes):
                seconds[x.pipeline] = x.macs
        for first in self.tried:
            if len(first.pipeline.stages) == 1:
                yield from self._of_first(first, seconds)

    def _of_first(self, first: Trial, seconds: Mapping[Pipeline, float]) -> Iterator[_Option]:
        target, predictor = self.evaluator.targets[0], self.evaluator.predictor
        margin = predictor.margins(first.pipeline, "select", target)
        one = np.asarray(predictor.predict(first.pipeline, "select", target))
        for second, macs in seconds.items():
            if macs <= first.macs:
                continue
            two = np.asarray(predictor.predict(second, "select", target))
            for share in SHARES:
                below = margin < threshold_at(margin, share)
                cost = first.macs + float(np.average(below, weights=self._weights)) * macs
                made = first.pipeline.then(_cascade(second, share))
                yield _Option(made, cost, self._estimate(np.where(below, two, one)))

    def _estimate(self, answers: NDArray[Any]) -> LossEstimate:
        task, metric = self.evaluator.model.task, self.evaluator.metric
        dense, labels = self.evaluator.predictor.with_labels(Pipeline(()), "select")
        return estimate_loss(task, metric, dense, answers, labels, self._weights)

    @cached_property
    def _weights(self) -> Floats:
        return select_weights(self.evaluator.predictor)


def _cascade(second: Pipeline, share: float) -> Pass:
    options: dict[str, Any] = {"to": str(second), "defer": share}
    return find_pass("cascade")(**options)
