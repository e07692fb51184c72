"""Compare the given and the shipped model by class, and warn of doubtful results.

A single score for all rows hides the loss of a rare class.
"""

from __future__ import annotations

from collections.abc import Sequence

from prumux.optimizer.tasks.metrics import AGREEMENT, Predictions
from prumux.optimizer.tasks.task import Task

from .contents import ByRole, CertificateRecord, ClassRecord, ClassScores, Pair, Score
from .formats import points

MAX_NAMED = 5
"""Largest number of classes that a warning names."""
MIN_ANSWERS = 3
"""A class that the shipped model never answers causes a warning, if the given model answers it
at least this often. With fewer answers, chance may be the reason."""


def class_scores(
    dense: Predictions, optimised: Predictions, labels: Predictions | None, task: Task
) -> ClassScores:
    """Agreement of both models and, for classification, answers and recall of each class.

    Args:
        dense: answers of the given model: class numbers [N], numbers [N], 0 or 1 for each
            label [N, C], or for token tasks an array of class numbers for each row.
        optimised: answers of the shipped model on the same rows.
        labels: labels in the same form; None = no labels, and recalls are against `dense`.
        task: names the classes.
    """
    agreement = task.score(AGREEMENT, optimised, dense)
    if not task.has_classes:
        return ClassScores(agreement, None, (), task.mean_cosine(dense, optimised))
    truth, p, q = (
        task.all_answers(x) for x in (dense if labels is None else labels, dense, optimised)
    )
    counts = task.label_counts
    columns = (
        task.labels,
        counts(truth),
        map(Pair, counts(p, truth), counts(q, truth)),
        map(Pair, counts(p), counts(q)),
    )
    classes = tuple(
        ClassRecord(label, rows, found, answered, _recall(found, rows))
        for label, rows, found, answered in zip(*columns, strict=True)
    )
    return ClassScores(agreement, "given model" if labels is None else "labels", classes)


def result_warnings(
    certify: Score, certificates: Sequence[CertificateRecord], classes: ByRole[ClassScores]
) -> list[str]:
    """Warn about classes that the shipped model never answers, and about unlikely gains.

    A gain is unlikely if it is too large for chance.
    """
    lost = [line for role, found in classes.items() for line in lost_classes(found, role)]
    return lost + unlikely_gains(certify, certificates)


def lost_classes(found: ClassScores, role: str) -> list[str]:
    """A warning if the shipped model gives one answer only, or never answers some classes."""
    dense = [x for x in found.classes if x.answered.dense]
    ours = [x for x in found.classes if x.answered.optimised]
    # With several labels a row, the numbers of answers may differ; the code below then warns.
    as_many = sum(x.answered.dense for x in dense) == sum(x.answered.optimised for x in ours)
    if len(ours) == 1 < len(dense) and as_many:
        return [
            f"the optimised model answers '{ours[0].label}' on all {role} rows, the given "
            f"model gives {len(dense)} different answers: it is of no use"
        ]
    lost = [
        f"'{x.label}' ({x.answered.dense} times by the given model)"
        for x in dense
        if x.answered.dense >= MIN_ANSWERS and not x.answered.optimised
    ]
    if not lost:
        return []
    more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
    return [
        f"the optimised model never answers {', '.join(lost[:MAX_NAMED])}{more} on the "
        f"{role} rows"
    ]


def unlikely_gains(certify: Score, certificates: Sequence[CertificateRecord]) -> list[str]:
    """A warning if a candidate is better: even the upper bound of its loss is below 0."""
    better = [x for x in (certify, *certificates) if x.loss_upper < 0]
    if not better:
        return []
    most = min(better, key=lambda x: x.loss)
    name = f" ({most.pipeline})" if isinstance(most, CertificateRecord) else ""
    return [
        f"a candidate{name} scores {points(most.score)} {most.metric} on the certify rows, "
        f"the given model {points(most.score_dense)}: a smaller model is seldom better, so "
        "look for labels in another order (--labels), a wrong label or text column "
        "(--columns), other text than the given model was trained on, or a given model that "
        "was not trained for this task"
    ]


def _recall(found: Pair[int], rows: int) -> Pair[float | None]:
    if not rows:
        return Pair(None, None)
    return Pair(found.dense / rows, found.optimised / rows)
