"""Dense against optimised class by class: what one number for all rows hides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prumux.optimizer.tasks.metrics import AGREEMENT, Predictions
from prumux.optimizer.tasks.task import Task

FEW = 20
"""Up to so many classes the terminal shows all."""
WORST = 5
"""Of more classes it shows those that lost most."""
VANISHED = 3
"""A class that the given model answers so often and the optimised one never is warned of:
seen less often it may be chance."""

Entry = Mapping[str, Any]


def class_scores(
    dense: Predictions, optimised: Predictions, labels: Predictions | None, task: Task
) -> dict[str, Any]:
    """Agreement of both models, and for classification each class's rows, answers and recalls.

    Without labels recalls are against the given model's answers.

    Args:
        dense, optimised: predictions on the same rows.
        labels: same form; None = unlabelled.
        task: names the classes.
    """
    agreement = task.score(AGREEMENT, optimised, dense)
    if not task.has_classes:
        return {"agreement": agreement, "against": None, "classes": []}
    truth, p, q = (
        task.all_answers(x) for x in (dense if labels is None else labels, dense, optimised)
    )

    def counts(x: Any) -> list[int]:
        return [int(n) for n in np.bincount(x, minlength=len(task.labels))]

    rows, by_dense, by_ours = counts(truth), counts(p), counts(q)
    right, right_ours = counts(truth[p == truth]), counts(truth[q == truth])
    return {
        "agreement": agreement,
        "against": "given model" if labels is None else "labels",
        "classes": [
            {
                "label": label,
                "rows": rows[c],
                "found": {"dense": right[c], "optimised": right_ours[c]},
                "answered": {"dense": by_dense[c], "optimised": by_ours[c]},
                "recall": {
                    "dense": right[c] / rows[c] if rows[c] else None,
                    "optimised": right_ours[c] / rows[c] if rows[c] else None,
                },
            }
            for c, label in enumerate(task.labels)
        ],
    }


def worst(classes: Sequence[Entry], few: int = FEW) -> list[Entry]:
    """Classes with rows: all, or of very many those whose recall fell most."""
    real = [x for x in classes if x["rows"]]
    if len(real) <= few:
        return real

    def gain(entry: Entry) -> float:
        recall = entry["recall"]
        return float(recall["optimised"] - recall["dense"])

    return sorted(real, key=gain)[:WORST]


def table_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Lines below a role's score: agreement, and the recall of each class."""
    share = f"{100 * found['agreement']:.2f}"
    rows = [("  agreement with dense", "", share, "")]
    shown = worst(found["classes"])
    real = sum(1 for x in found["classes"] if x["rows"])
    if len(shown) < real:
        rows.append((f"  the {len(shown)} of {real} classes that lost most:", "", "", ""))
    for entry in shown:
        a, b = entry["recall"]["dense"], entry["recall"]["optimised"]
        n, found_rows = entry["rows"], entry["found"]
        what = "kept of" if found["against"] == "given model" else "recall of"
        rows.append(
            (
                f"  {what} '{entry['label']}' ({n})",
                f"{100 * a:.2f} ({found_rows['dense']})",
                f"{100 * b:.2f} ({found_rows['optimised']})",
                f"{100 * (b - a):+.2f}",
            )
        )
    return rows


def vanished(found: Mapping[str, Any], role: str) -> list[str]:
    """Warnings: the optimised model answers a constant, or some classes never."""
    classes = found["classes"]
    dense = [x for x in classes if x["answered"]["dense"]]
    ours = [x for x in classes if x["answered"]["optimised"]]
    if len(ours) == 1 < len(dense):
        return [
            f"the optimised model answers '{ours[0]['label']}' on all {role} rows, the given "
            f"model gives {len(dense)} different answers: it is of no use"
        ]
    gone = [
        f"'{x['label']}' ({x['answered']['dense']} times by the given model)"
        for x in dense
        if x["answered"]["dense"] >= VANISHED and not x["answered"]["optimised"]
    ]
    if not gone:
        return []
    more = f" and {len(gone) - WORST} more" if len(gone) > WORST else ""
    return [
        f"the optimised model never answers {', '.join(gone[:WORST])}{more} on the {role} rows"
    ]


def suspicious_gains(scores: Mapping[str, Any], proofs: Sequence[Entry]) -> list[str]:
    """A warning where a candidate beats the given model by more than chance explains."""
    better = [x for x in (scores["certify"], *proofs) if x["loss_upper"] < 0]
    if not better:
        return []
    most = min(better, key=lambda x: float(x["loss"]))
    name = f" ({most['pipeline']})" if most.get("pipeline") else ""
    return [
        f"a candidate{name} scores {100 * most['score']:.2f} {most['metric']} on the certify "
        f"rows, the given model {100 * most['score_dense']:.2f}: a smaller model is seldom "
        "better, so look for labels in another order (--labels), a wrong label or text column "
        "(--columns), other text than the given model was trained on, or a given model that "
        "was not trained for this task"
    ]
