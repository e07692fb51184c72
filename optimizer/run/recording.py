"""Record answers of the packaged engine, to verify it later on the serving machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.certificate.kept_answers import (
    MOST_ROWS,
    CertifiedFacts,
    KeptAnswers,
    digests,
)
from prumux.optimizer.data.predict import row_logits, scored_positions, torch_run
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.pipeline.own_rows import own_rows
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.report.contents import Report
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.tasks.labels import IGNORE
from prumux.optimizer.tasks.metrics import AGREEMENT

from .packaging import ExportedModel
from .workspace import Workspace

MOST_NUMBERS = 2**15
"""Largest count of numbers in all answers together, because embeddings are long vectors."""
LEAST_ROWS = 32


def kept_rows(rows: Encoded, seed: int, most: int = MOST_ROWS) -> NDArray[np.int64]:
    """At most `most` random rows, in their order.

    If rows belong to queries, all rows of a query are kept together. If the first query has
    too many rows, its rows are cut to `most`.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    if rows.groups is not None:
        _, first, of = np.unique(rows.groups[order], return_index=True, return_inverse=True)
        order = order[np.argsort(first[of], kind="stable")]
        ends = np.flatnonzero(np.diff(rows.groups[order], append=-1)) + 1
        whole = ends[ends <= most]
        order = order[: whole[-1]] if len(whole) else order
    return np.sort(order[:most])


def kept_questions(
    question: NDArray[np.int64], seed: int, most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random questions, at least one, with at most `most` windows together, in order.

    Args:
        question: the question of each window, [W], in order.
        seed: seed of the draw.
        most: largest number of windows of all questions together.

    Returns:
        The indices of the questions, and of all their windows.
    """
    windows = np.bincount(question)
    order = np.random.default_rng(seed).permutation(len(windows))
    fitting = int((np.cumsum(windows[order]) <= most).sum())
    chosen = np.sort(order[: max(1, fitting)])
    return chosen, np.flatnonzero(np.isin(question, chosen))


def recorded(
    evaluator: Evaluator, packaged: ExportedModel, report: Report, workspace: Workspace
) -> KeptAnswers | None:
    """Answers of the packaged engine to some certify rows; None if their texts are unknown.

    Args:
        evaluator: gives the rows and their labels.
        packaged: the packaged engine.
        report: the report, with the certificate.
        workspace: the workspace, whose staging folder contains the files of the result.
    """
    texts = evaluator.certify_rows.given
    if texts is None:
        return None
    sizes, layout = evaluator.model.encoder, evaluator.certify_rows.layout
    most = max(LEAST_ROWS, min(MOST_ROWS, MOST_NUMBERS // sizes.labels))
    windows = None if layout is None else layout.windows
    if windows is None:
        at = chosen = kept_rows(evaluator.certify_rows, evaluator.ctx.seed, most)
    else:
        chosen, at = kept_questions(windows.question, evaluator.ctx.seed, most)
    rows = own_rows(evaluator.certify_rows, packaged.model).take(at)
    predictor = evaluator.predictor
    logits = row_logits(packaged.engine.run, rows, None, **predictor.mixing(packaged.model))
    by_row = layout is None or windows is not None
    if by_row:
        known = predictor.with_labels(Pipeline(()), "certify")[1]
        references = [known[i] for i in chosen]
    else:  # some texts of a row may be missing among the kept ones
        references = row_logits(torch_run(evaluator.model), evaluator.certify_rows.take(at))
    scored = scored_positions(rows) if windows is None else None
    return KeptAnswers(
        facts=_facts(evaluator, report, workspace, report.metric if by_row else AGREEMENT),
        rows=texts.take(chosen),
        ids=rows.ids,
        logits=tuple(np.asarray(x, np.float32) for x in logits),
        references=tuple(references),
        scored=None
        if scored is None
        else tuple(x if x.dtype == np.bool_ else x != IGNORE for x in scored),
        question=None
        if windows is None
        else tuple(np.searchsorted(chosen, windows.question[at]).tolist()),
    )


def _facts(
    evaluator: Evaluator, report: Report, workspace: Workspace, metric: str
) -> CertifiedFacts:
    """Facts of the certificate, and digests of the result's files."""
    certified = report.scores.certify
    return CertifiedFacts(
        metric=metric,
        limit=report.limit,
        loss_upper=certified.loss_upper,
        confidence=certified.confidence,
        certified_rows=certified.rows,
        seed=evaluator.ctx.seed,
        engine=dict(report.engine),
        files=digests(workspace.staging),
        arrivals=evaluator.ctx.arrivals,
    )
