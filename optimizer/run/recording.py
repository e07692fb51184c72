"""Records the packaged engine's answers, to be verified where it serves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.certificate.kept_answers import (
    MOST_ROWS,
    CertifiedFacts,
    KeptAnswers,
    digests,
)
from prumux.optimizer.data.predict import row_logits, scored_positions
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.report.contents import Report
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.tasks.labels import IGNORE

from .packaging import ExportedModel
from .workspace import Workspace


def kept_rows(rows: Encoded, seed: int) -> NDArray[np.int64]:
    """At most `MOST_ROWS` random rows, in their order; of queries whole ones, if one fits."""
    order = np.random.default_rng(seed).permutation(len(rows))
    if rows.groups is not None:
        _, first, of = np.unique(rows.groups[order], return_index=True, return_inverse=True)
        order = order[np.argsort(first[of], kind="stable")]
        ends = np.flatnonzero(np.diff(rows.groups[order], append=-1)) + 1
        whole = ends[ends <= MOST_ROWS]
        order = order[: whole[-1]] if len(whole) else order
    return np.sort(order[:MOST_ROWS])


def recorded(
    evaluator: Evaluator, packaged: ExportedModel, report: Report, workspace: Workspace
) -> KeptAnswers | None:
    """Answers of the packaged engine to some certify rows; None if their texts are unknown.

    Args:
        evaluator: knows the rows and their labels.
        packaged: the engine.
        report: what was certified.
        workspace: its staging folder holds the files of the result.
    """
    texts = evaluator.certify_texts
    if texts is None:
        return None
    at = kept_rows(evaluator.certify_rows, evaluator.ctx.seed)
    rows = evaluator.certify_rows.take(at)
    predictor = evaluator.predictor
    logits = row_logits(packaged.engine.run, rows, None, **predictor.mixing(packaged.model))
    _, references = predictor.with_labels(Pipeline(()), "certify")
    scored = scored_positions(rows)
    certified = report.scores.certify
    facts = CertifiedFacts(
        metric=report.metric,
        limit=report.limit,
        loss_upper=certified.loss_upper,
        confidence=certified.confidence,
        certified_rows=certified.rows,
        seed=evaluator.ctx.seed,
        engine=dict(report.engine),
        files=digests(workspace.staging),
        arrivals=evaluator.ctx.arrivals,
    )
    return KeptAnswers(
        facts=facts,
        rows=texts.take(at),
        ids=rows.ids,
        logits=tuple(np.asarray(x, np.float32) for x in logits),
        references=tuple(references[i] for i in at),
        scored=None
        if scored is None
        else tuple(x if x.dtype == np.bool_ else x != IGNORE for x in scored),
    )
