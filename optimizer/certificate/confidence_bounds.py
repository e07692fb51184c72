"""Exact and score-based upper confidence bounds of a loss that counts rows.

Sources: Tango 1998, Statistics in Medicine 17,
https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B;
Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist


def tango_upper(rows: float, worse: float, better: float, confidence: float = 0.95) -> float:
    """One-sided upper bound of the loss of accuracy, by Tango's score test (1998).

    The bound is the largest loss d that the test does not reject:

        (worse - better - n d) / sqrt(n (2 q + d (1 - d))) > -z,

    where q is the maximum-likelihood share of improved rows, given d. If no row changed, the
    bound is z^2 / (n + z^2). The counts may be fractions, for planning. If no row improves,
    the coverage is too low: use `accuracy_upper`.

    Args:
        rows: n, the number of all rows.
        worse: number of rows that only the given model answers correctly.
        better: number of rows that only the optimised model answers correctly.
        confidence: one-sided.
    """
    z = NormalDist().inv_cdf(confidence)

    def rejected(d: float) -> bool:
        b = -worse - better + (2 * rows - worse + better) * d
        root = math.sqrt(max(b * b + 8 * rows * better * d * (1 - d), 0.0))
        q = max((root - b) / (4 * rows), 0.0)
        spread = math.sqrt(max(rows * (2 * q + d * (1 - d)), 0.0))
        return worse - better - rows * d < -z * spread

    return crossing(rejected, (worse - better) / rows, 1.0)


def accuracy_upper(
    rows: float, worse: float, better: float, confidence: float = 0.95
) -> float:
    """The bound that certifies accuracy: `tango_upper` with half a lost row added.

    The table shows the exact coverage of the 95 % bound if no row improves. Each figure is the
    lowest over all true losses up to 0.1:

    ====  =========  ======================
    rows  Tango      with half a row more
    ====  =========  ======================
    50    92.8 %     96.5 %
    200   93.2 %     95.6 %
    872   93.3 %     95.2 %
    ====  =========  ======================

    With half a row more, the coverage is at least 95 % for true losses up to 0.5. The
    arguments are those of `tango_upper`.
    """
    return tango_upper(rows, min(worse + 0.5, rows), better, confidence)


def crossing(above: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest x in [low, high] with `above(x)`, rounded up; `above` is monotone."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if above(middle) else (middle, high)
    return high


def clopper_pearson_upper(rows: float, changed: float, confidence: float = 0.95) -> float:
    """Exact upper bound of a share: a quantile of Beta(changed + 1, rows - changed)."""
    from scipy.stats import beta

    if changed >= rows:
        return 1.0
    return float(beta.ppf(confidence, changed + 1, rows - changed))


def few_errors_upper(
    loss: float, spread: float, step: float, confidence: float = 0.95
) -> float:
    """Score bound, like `accuracy_upper`, of a loss to which each error adds `step`.

    A normal bound uses only the observed spread. If the true loss is higher by d, there are
    d / step more errors, and the variance is higher by d * step. The bound solves

        d = z sqrt(spread^2 + step^2 / 2 + d step),    upper = loss + step / 2 + d,

    where step / 2, half an error, is a continuity correction. If no error was observed, the
    bound is the loss of `unseen_errors` more errors.

    Args:
        loss: the observed loss.
        spread: the standard error of the loss, estimated from the rows.
        step: the loss that one more error adds.
        confidence: one-sided.
    """
    z = NormalDist().inv_cdf(confidence)
    half = z * z * step / 2
    return (
        loss + step / 2 + half + math.sqrt((z * spread) ** 2 + (z * step) ** 2 / 2 + half**2)
    )


def unseen_errors(confidence: float = 0.95) -> float:
    """The number of errors that a sample without errors cannot rule out: 3.6 at 95 %."""
    return few_errors_upper(0.0, 0.0, 1.0, confidence)
