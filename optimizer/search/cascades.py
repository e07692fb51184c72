"""Cascades of tried candidates: a deeper cut answers, a safer one has the unsure rows.

Nothing is trained for them. The answers of both stages on the select rows are known, so the
loss of a cascade with any threshold is computed, not tried; with it the cheapest cascade that
loses little enough is chosen:

    cost = first stage + share deferred x second stage
    loss = that of the answers  second(x) where m(x) < t, else first(x)

No certify row and no clock has a part in the choice. The chosen cascade is then a candidate as
any other.
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
"""Shares of rows to defer that are tried."""
LEAST_GAIN = 1.25
"""A cascade must need so many times fewer multiply-adds than the best single candidate. Its
second stage runs on few rows at a time, which is up to 6 % slower than their share says."""


@dataclass(frozen=True)
class _Stage:
    """A candidate as a stage of cascades."""

    pipeline: Pipeline
    macs: float


def cascade_candidate(
    evaluator: Evaluator, tried: Sequence[Trial], best: Trial, most_loss: float
) -> Pipeline | None:
    """The cascade of tried candidates that is worth a trial; None if none is.

    Args:
        evaluator: has built and scored the candidates.
        tried: finished trials, `best` among them.
        best: the fastest single candidate that keeps the budget on the select rows.
        most_loss: the largest loss on the select rows that a cascade may have.
    """
    if any(evaluator.tried(x.pipeline) is None for x in tried):
        return None  # workers look ahead with assumed losses
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
    """Makes a cascade that loses no more than its best candidate, or what is surely proved."""
    safe = safe_loss(evaluator.certify_rows.scored_rows, limit)
    return lambda tried, best: cascade_candidate(evaluator, tried, best, max(best.loss, safe))


def bag_candidate(evaluator: Evaluator) -> Pipeline | None:
    """The bag of embeddings, which has no layer; None where it cannot be made or timed."""
    if evaluator.ctx.costs is not None or evaluator.ctx.fit.groups is not None:
        return None
    try:
        found = find_pass("bag")()
        found.check_given(evaluator.model)
    except (UsageError, SpecError, PassError):
        return None
    return Pipeline((found,))


def _possible(evaluator: Evaluator) -> bool:
    """Whether task, target and installed passes allow cascades."""
    try:
        evaluator.target.check_stages()
        find_pass("cascade")().check_given(evaluator.model)
    except (UsageError, SpecError, PassError):
        return False
    return True


def _options(
    evaluator: Evaluator, tried: Sequence[Trial], best: Trial
) -> Iterator[tuple[float, float, Pipeline]]:
    """Multiply-adds, loss on the select rows and pipeline of all cascades that may pay."""
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
    """The cascades of one first stage."""
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
    """A built candidate's margins on the select rows; computed once a run."""

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
    """The loss on the select rows where the second stage answers the rows below."""
    predictor, target = evaluator.predictor, evaluator.targets[0]
    one, labels = predictor.with_labels(first, "select", target)
    two = predictor.predict(second, "select", target)
    answers = np.where(below, np.asarray(two), np.asarray(one))
    score = evaluator.model.task.score(evaluator.metric, answers, labels)
    return evaluator.dense_score("select") - score
