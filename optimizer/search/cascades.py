"""Cascades of tried candidates: a fast model answers first, a safer one the unsure rows.

Cascades need no training. The answers of both stages on the select rows are known, so the
loss of a cascade can be computed for any threshold t:

    cost = first stage + share deferred x second stage
    answer(x) = second(x) if m(x) < t, else first(x)

Here m(x) is the margin of row x in the first stage. The cheapest cascade with a small enough
loss is chosen, without certify rows and without a clock. It then becomes a candidate like any
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prumux.optimizer.base.errors import PassError, SpecError, UsageError
from prumux.optimizer.base.store import key
from prumux.optimizer.data.predict import row_logits, torch_run
from prumux.optimizer.model.cascade import margins, threshold_at
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import find_pass

from .bisection import Extend, Trial, safe_loss
from .evaluator import Evaluator
from .presets import exact_pipeline

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
"""Shares of deferred rows to try."""
LEAST_GAIN = 1.25
"""Smallest ratio of the best single candidate's multiply-adds to a cascade's.

The second stage runs on few rows at a time, and is up to 6 % slower than the multiply-adds
predict."""


@dataclass(frozen=True)
class _Stage:
    """A candidate that may be a stage of a cascade."""

    pipeline: Pipeline
    macs: float


def cascade_candidate(
    evaluator: Evaluator, tried: Sequence[Trial], best: Trial, most_loss: float
) -> Pipeline | None:
    """The cascade of tried candidates that should be tried next; None = there is none.

    Args:
        evaluator: the evaluator that built and scored the candidates.
        tried: finished trials, including `best`.
        best: the fastest single candidate within the budget on the select rows.
        most_loss: the largest loss on the select rows that a cascade may have.
    """
    if any(evaluator.tried(x.pipeline) is None for x in tried):
        return None  # a replay for workers has assumed losses only
    if not _possible(evaluator):
        return None
    about = (*(str(x.pipeline) for x in tried), str(best.pipeline), most_loss)

    def choose() -> dict[str, str]:
        found = [x for x in _options(evaluator, tried, best) if x[1] <= most_loss]
        return {"pipeline": str(min(found, key=lambda x: x[0])[2])} if found else {}

    name = f"cascade-{key(*about, str(evaluator.targets[0]))}"
    text = evaluator.ctx.store.json(name, choose).get("pipeline")
    return Pipeline.parse(text) if text else None


def cascade_maker(evaluator: Evaluator, limit: float) -> Extend:
    """An `Extend` for cascades that lose at most as much as the best trial, or `safe_loss`."""
    safe = safe_loss(evaluator.certify_rows.scored_rows, limit)
    return lambda tried, best: cascade_candidate(evaluator, tried, best, max(best.loss, safe))


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


def _options(
    evaluator: Evaluator, tried: Sequence[Trial], best: Trial
) -> Iterator[tuple[float, float, Pipeline]]:
    """Multiply-adds, loss on the select rows and pipeline of each cascade that may pay off."""
    exact = exact_pipeline()
    seconds = [_Stage(exact, evaluator.builder.cost(exact).macs)]
    if all(x.slots <= 1 for x in best.pipeline.passes):
        seconds.append(_Stage(best.pipeline, best.macs))
    firsts = [_Stage(x.pipeline, x.macs) for x in tried if x.macs * LEAST_GAIN < best.macs]
    for first in firsts:
        yield from _of_first(evaluator, first, seconds, best.macs / LEAST_GAIN)


def _of_first(
    evaluator: Evaluator, first: _Stage, seconds: Sequence[_Stage], most_macs: float
) -> Iterator[tuple[float, float, Pipeline]]:
    """The cascades with one first stage, in the form of `_options`."""
    margin = _margins(evaluator, first.pipeline)
    for second in seconds:
        for share in SHARES:
            below = margin < threshold_at(margin, share)
            macs = first.macs + float(below.mean()) * second.macs
            if macs > most_macs:
                break
            made = first.pipeline.then(_cascade(second.pipeline, share))
            yield macs, _loss(evaluator, first.pipeline, second.pipeline, below), made


def _cascade(second: Pipeline, share: float) -> Pass:
    options: dict[str, Any] = {"to": str(second), "defer": share}
    return find_pass("cascade")(**options)


def _margins(evaluator: Evaluator, pipeline: Pipeline) -> NDArray[np.float32]:
    """A candidate's margins on the select rows, computed once a run."""

    def make() -> dict[str, torch.Tensor]:
        model = evaluator.builder.build(pipeline)
        mixing = evaluator.predictor.mixing(model)
        logits = row_logits(torch_run(model), evaluator.select_rows, None, **mixing)
        return {"margins": margins(torch.as_tensor(np.stack(logits)))}

    kept = evaluator.ctx.cached("margins", (str(pipeline), evaluator.data_digest), make)
    found: NDArray[np.float32] = kept["margins"].numpy()
    return found


def _loss(
    evaluator: Evaluator, first: Pipeline, second: Pipeline, below: NDArray[np.bool_]
) -> float:
    """The loss on the select rows if the second stage answers the rows in `below`."""
    predictor, target = evaluator.predictor, evaluator.targets[0]
    one, labels = predictor.with_labels(first, "select", target)
    two = predictor.predict(second, "select", target)
    answers = np.where(below, np.asarray(two), np.asarray(one))
    score = evaluator.model.task.score(evaluator.metric, answers, labels)
    return evaluator.dense_score("select") - score
