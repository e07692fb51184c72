"""Facts of a cascade for the report: deferred rows, margins, and the score of each stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.store import key
from prumux.optimizer.data.predict import row_logits, scored_positions, torch_run
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import margins
from prumux.optimizer.pipeline.engine import DefersRows, Engine
from prumux.optimizer.pipeline.pipeline import Pipeline

from .predictions import CandidatePredictor

BINS = 24
"""Number of bars of the histogram."""


@dataclass(frozen=True)
class CascadeFacts:
    """Facts of a cascade on the rows of one role."""

    deferred: float
    """Share of rows that the second stage answered."""
    first: float
    """Score of the first stage alone, in torch."""
    second: float
    edges: tuple[float, ...]
    """Edges of the bars in the histogram of margins."""
    rows: tuple[int, ...]
    """Number of rows in each bar."""
    differ: tuple[int, ...]
    """Number of rows in each bar that the two stages answer differently."""


def cascade_facts(
    predictor: CandidatePredictor, pipeline: Pipeline, role: str, engine: Engine
) -> CascadeFacts:
    """Facts of a cascade on the rows of a role, computed once a run.

    Args:
        predictor: gives the rows and the metric.
        pipeline: the cascade's pipeline.
        role: `certify` or `test`.
        engine: counts the deferred rows. If it does not report them, torch counts.
    """
    model = predictor.builder.build(pipeline)
    about = (pipeline, role, model.source, predictor.data_digest, dict(engine.describe()))

    def make() -> dict[str, Any]:
        return asdict(_measured(predictor, model, role, engine))

    found: dict[str, Any] = predictor.ctx.store.json(f"cascade-{key(*about)}", make)
    lists = {name: tuple(found[name]) for name in ("edges", "rows", "differ")}
    return CascadeFacts(**{**found, **lists})


def _measured(
    predictor: CandidatePredictor, model: Model, role: str, engine: Engine
) -> CascadeFacts:
    second = model.second
    assert second is not None
    rows, task, mixing = predictor.rows(role), model.task, predictor.mixing(model)
    first = Model(**{**vars(model), "second": None})
    one = row_logits(torch_run(first), rows, None, **mixing)
    two = row_logits(torch_run(second.model), rows)
    answers = [task.predictions(x, scored_positions(rows)) for x in (one, two)]
    labels = predictor.with_labels(Pipeline(()), role)[1]
    margin = margins(np.stack(one))
    edges, counts, differ = histogram(margin, np.asarray(answers[0]) != np.asarray(answers[1]))
    below = margin < second.threshold
    if isinstance(engine, DefersRows):
        below = _told(engine.deferred, rows, mixing)
    first_score, second_score = (task.score(predictor.metric, x, labels) for x in answers)
    share = float(below.mean())
    return CascadeFacts(share, first_score, second_score, edges, counts, differ)


def _told(asked: Callable[..., Any], rows: Encoded, mixing: dict[str, Any]) -> NDArray[Any]:
    """1 for each row that an engine defers, 0 for others, [N]; a mean for repeated rows."""
    return np.stack(row_logits(lambda x: asked(x)[:, None], rows, None, **mixing))


def histogram(
    margin: NDArray[Any], differs: NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]]:
    """Edges, rows and differing rows of bars of equal width, from 0 to the largest margin."""
    top = float(margin.max(initial=0.0)) or 1.0
    counts, edges = np.histogram(margin, BINS, (0.0, top))
    differ, _ = np.histogram(margin[differs], BINS, (0.0, top))
    return tuple(edges.tolist()), tuple(counts.tolist()), tuple(differ.tolist())
