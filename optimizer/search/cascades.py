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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import PassError, SpecError, UsageError
from prumux.optimizer.base.store import key
from prumux.optimizer.model.cascade import threshold_at
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
class Stage:
    """A candidate that may be a stage of a cascade, and its answers to the N select rows."""

    pipeline: Pipeline
    macs: float
    answers: NDArray[Any]
    """[N]."""
    margins: NDArray[np.float32]
    """[N]."""

    @property
    def may_be_second(self) -> bool:
        """True if the candidate takes rows one by one, as they are."""
        return all(x.slots <= 1 and not x.last for x in self.pipeline.passes)


@dataclass(frozen=True)
class CascadeOption:
    """A cascade that could be tried."""

    first: Stage
    second: Stage
    share: float
    """Share of the select rows to defer."""
    macs: float
    estimate: LossEstimate

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of the cascade."""
        options: dict[str, Any] = {"to": str(self.second.pipeline), "defer": self.share}
        return self.first.pipeline.then(find_pass("cascade")(**options))


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
    rows = evaluator.certify_rows.scored_rows

    def choose() -> list[str]:
        options = _options(evaluator, tried)
        return [
            str(x.pipeline)
            for x in best_cascades(options, tried, limit, rows, most, most_macs)
        ]

    found = evaluator.ctx.store.json(f"cascades-{key(*about)}", choose)
    return tuple(Pipeline.parse(x) for x in found)


def cascade_options(
    stages: Sequence[Stage], weights: Floats, estimate: Callable[[NDArray[Any]], LossEstimate]
) -> Iterator[CascadeOption]:
    """Every cascade of two of the stages, with every share of `SHARES`.

    Args:
        stages: the candidates, with their answers to the N select rows.
        weights: the weights of the select rows, [N], see `unseen_weights`.
        estimate: estimates the loss of answers, [N].
    """
    for first in stages:
        if len(first.pipeline.stages) > 1:
            continue
        limits = [first.margins < threshold_at(first.margins, x) for x in SHARES]
        shares = [float(np.average(x, weights=weights)) for x in limits]
        for second in stages:
            if second.macs <= first.macs or not second.may_be_second:
                continue
            for share, below, deferred in zip(SHARES, limits, shares, strict=True):
                answers = np.where(below, second.answers, first.answers)
                macs = first.macs + deferred * second.macs
                yield CascadeOption(first, second, share, macs, estimate(answers))


def best_cascades(  # noqa: PLR0917 - all that the choice depends on
    options: Iterable[CascadeOption],
    tried: Sequence[Trial],
    limit: float,
    rows: int,
    most: int,
    most_macs: float,
) -> list[CascadeOption]:
    """Options that pay, the surest first, each at least `STEP` cheaper than the one before.

    Args:
        options: all options.
        tried: the trials of single candidates, which an option must undercut.
        limit: the allowed loss.
        rows: number of certify rows.
        most: the largest number of options.
        most_macs: multiply-adds that all options must undercut by `LEAST_GAIN`.
    """

    def chance(x: Trial | CascadeOption) -> float:
        return x.estimate.chance(limit, rows)

    singles = [(chance(x), x.macs) for x in tried]

    def pays(x: CascadeOption) -> bool:
        mine = chance(x)
        rivals = [macs for other, macs in singles if other >= mine]
        return mine >= LEAST_CHANCE and all(x.macs * LEAST_GAIN <= macs for macs in rivals)

    cheap = (x for x in options if x.macs * LEAST_GAIN <= most_macs)
    kept: list[CascadeOption] = []
    for one in cheaper_and_cheaper(filter(pays, cheap), chance):
        if not kept or one.macs * STEP <= kept[-1].macs:
            kept.append(one)
    # Evenly spread, because the surest ones of many would all be slow.
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
    return evaluator.target.searches_cascades


def _options(evaluator: Evaluator, tried: Sequence[Trial]) -> Iterator[CascadeOption]:
    """The options of tried candidates and of the exact model."""
    predictor, target = evaluator.predictor, evaluator.targets[0]
    exact = exact_pipeline()
    macs: dict[Pipeline, float] = {exact: evaluator.builder.cost(exact).macs}
    macs |= {x.pipeline: x.macs for x in tried}

    def stage(pipeline: Pipeline) -> Stage:
        answers = np.asarray(predictor.predict(pipeline, "select", target))
        margins = predictor.margins(pipeline, "select", target)
        return Stage(pipeline, macs[pipeline], answers, margins)

    dense, labels = predictor.with_labels(Pipeline(()), "select")
    weights = select_weights(predictor)
    task, metric = evaluator.model.task, evaluator.metric

    def estimate(answers: NDArray[Any]) -> LossEstimate:
        return estimate_loss(task, metric, dense, answers, labels, weights)

    return cascade_options([stage(x) for x in macs], weights, estimate)
