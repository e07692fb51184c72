"""Are the bounds of F1, macro-F1 and Matthews correlation high enough for a rare class?

    python bench/rare_classes.py --samples 600

The script draws rows of eight kinds (label, given model's answer, optimised model's answer)
with known shares, so the true loss is known. A bound below the true loss is a miss, and 5 % of
samples may miss. The table compares two bounds: the percentile of the bootstrap, and the bound
of certificates (`few_errors_upper`). Resampling the counts of the kinds equals resampling
rows, and is a hundred times faster.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from prumux.optimizer.base.environment import provenance
from prumux.optimizer.certificate.confidence_bounds import few_errors_upper, unseen_errors
from prumux.optimizer.tasks.registry import from_config

Floats = NDArray[np.float64]
TASK = from_config({"id2label": {0: "negative", 1: "positive"}})
KINDS = np.array(list(product((0, 1), repeat=3)))
"""Label, given model's answer and optimised model's answer of each kind, [8, 3]."""
METRICS = ("f1", "macro-f1", "matthews_correlation")
ROWS_AND_POSITIVES = (
    (436, 0.02),
    (872, 0.02),
    (872, 0.05),
    (2000, 0.02),
    (2000, 0.1),
    (872, 0.5),
)
ERRORS = {
    "loses 10 % of hits": (0.1, 0.0, 0.0, 0.0),
    "loses 3 % of hits": (0.03, 0.0, 0.0, 0.0),
    "false positives": (0.0, 0.0, 0.003, 0.0),
    "both ways": (0.15, 0.1, 0.003, 0.2),
}
"""Shares of changed answers, of the given model's hits, misses, true negatives and false
positives."""
RECALL, RESAMPLES, CONFIDENCE = 0.8, 2000, 0.95


def shares(positives: float, errors: tuple[float, float, float, float]) -> Floats:
    """Share of each kind of row, [8]."""
    lost, won, new, gone = errors
    false = 0.005 if positives < 0.3 else 0.1
    found = {1: (positives * RECALL, positives * (1 - RECALL)), 0: (1 - positives, 0.0)}
    made = np.zeros(len(KINDS))
    for i, (label, dense, optimised) in enumerate(KINDS):
        if label:
            base = found[1][0 if dense else 1]
            change = lost if dense else won
        else:
            base = (1 - positives) * (false if dense else 1 - false)
            change = gone if dense else new
        made[i] = base * (change if dense != optimised else 1 - change)
    return made


def losses(metric: str, counts: Floats) -> Floats:
    """Loss for given counts of each kind of row, [R, 8] -> [R]."""
    labels = KINDS[:, 0]
    dense, optimised = (TASK.scorer(metric, KINDS[:, i], labels)(counts) for i in (1, 2))
    return dense - optimised


def bounds(metric: str, counts: Floats, random: np.random.Generator) -> tuple[float, float]:
    """The bound of the bootstrap alone, and the bound of certificates."""
    rows, z = int(counts.sum()), NormalDist().inv_cdf(CONFIDENCE)
    loss = float(losses(metric, counts[None])[0])
    drawn = losses(metric, random.multinomial(rows, counts / rows, RESAMPLES).astype(float))
    stretch = float(t.ppf(CONFIDENCE, rows - 1)) / z
    spread = max(float(np.quantile(drawn, CONFIDENCE)) - loss, 0.0) * stretch / z
    unseen = unseen_errors(CONFIDENCE)
    lost = np.flatnonzero((KINDS[:, 1] == KINDS[:, 0]) & (KINDS[:, 2] != KINDS[:, 0]))
    worst = losses(metric, counts + unseen * np.eye(len(KINDS))[lost]).max()
    step = max(float(worst) - loss, 0.0) / unseen
    return loss + z * spread, few_errors_upper(loss, spread, step, CONFIDENCE)


def study(samples: int, seed: int) -> list[dict[str, Any]]:
    """Simulate each metric, number of rows, share of positives and kind of error."""
    found = []
    for metric, (rows, positives), (name, errors) in product(
        METRICS, ROWS_AND_POSITIVES, ERRORS.items()
    ):
        kinds = shares(positives, errors)
        true = float(losses(metric, kinds[None])[0])
        random = np.random.default_rng(seed)
        drawn = (random.multinomial(rows, kinds).astype(float) for _ in range(samples))
        made = np.array(
            [bounds(metric, x, random) for x in drawn if x[KINDS[:, 0] == 1].any()]
        )
        missed = (made < true).mean(0)
        entry = {"metric": metric, "rows": rows, "positives": positives, "errors": name}
        entry |= {
            "true_loss": true,
            "samples": len(made),
            "median_bound": np.median(made[:, 1]),
        }
        found.append({**entry, "missed_bootstrap": missed[0], "missed": missed[1]})
    return found


def _line(x: dict[str, Any]) -> str:
    missed = [100 * x[k] for k in ("missed_bootstrap", "missed")]
    return (
        f"{x['metric']:20} {x['rows']:5} rows {x['positives']:4.0%} positives  "
        f"{x['errors']:18} true loss {100 * x['true_loss']:5.2f}  "
        f"missed {missed[0]:4.1f} % by the bootstrap, {missed[1]:4.1f} % by the bound"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    found = study(given.samples, given.seed)
    out = [_line(x) for x in found]
    worst = [100 * max(x[k] for x in found) for k in ("missed_bootstrap", "missed")]
    out.append(f"at most {worst[0]:.1f} % by the bootstrap, {worst[1]:.1f} % by the bound")
    sys.stdout.write("\n".join([*out, ""]))
    if given.out:
        report = {"entries": found, "seed": given.seed, **provenance()}
        given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
