"""Bisection: finds the fastest candidate of a one-dimensional space that keeps the budget.

1. Candidates are ordered by multiply-adds, slowest first. Their sizes are known without
   refits, because importance scores are shared.
2. Bisection on the select rows finds the last candidate i with observed loss
   L_select(i) <= limit, assuming that the loss rises along the order.
3. Candidates from a clearly good one up to i, and beyond i, are certified in turn on rows that
   no choice was made on. The first failure ends this (fixed-sequence testing, see
   `fixed_sequence` in certificate.py; Learn-then-Test, https://arxiv.org/abs/2110.01052).
   Candidates beyond i are tried because the dense model may have been trained on the select
   rows: it has memorised them, so that the observed loss of a cut is up to four times the
   true one.

No choice depends on a clock, so the same inputs give the same pipeline (unless there is a time
limit). The callables `trial` and `certify` do the work and store it; this module only decides
what is tried next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.certificate.certificate import CONFIDENCE, Certificate, fixed_sequence
from prumux.optimizer.certificate.provable import provable_loss
from prumux.optimizer.pipeline.pipeline import Pipeline

Certify = Callable[[Pipeline, float], Certificate]
"""Certifies a candidate with a confidence."""
Proofs = list[tuple[Pipeline, Certificate]]
"""Certificates in the order in which they were made."""
Extend = Callable[["Sequence[Trial]", "Trial"], "Pipeline | None"]
"""Trials so far, and the fastest that keeps the limit on the select rows, to one more."""
SAFE_SHARE = 0.5
"""Certification starts at a candidate whose observed loss is at most this share of the largest
loss that the rows can certify."""


@dataclass(frozen=True)
class Trial:
    """One candidate, built and scored on the select rows."""

    pipeline: Pipeline
    score: float
    loss: float
    seconds: float
    macs: int
    predicted_ratio: float | None = None
    """Throughput over the dense engine's, measured with an untrained model of its shape."""


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search."""

    trials: tuple[Trial, ...]
    proofs: tuple[tuple[Pipeline, Certificate], ...]
    """Certificates in the order in which they were made; the last may have failed."""
    winner: Pipeline | None
    certificate: Certificate | None
    reason: str


def no_cascade(tried: Sequence[Trial], best: Trial) -> Pipeline | None:
    """Add no candidate."""
    del tried, best
    return None


def search_by_bisection(
    order: Sequence[Pipeline],
    trial: Callable[[Pipeline], Trial],
    certify: Certify,
    limit: float,
    out_of_time: Callable[[Pipeline], bool],
    *,
    safe: float,
    extend: Extend = no_cascade,
    apart: Pipeline | None = None,
) -> SearchResult:
    """Search candidates that are ordered from the slowest to the fastest.

    Args:
        order: at least one candidate.
        trial: builds and scores one.
        certify: certifies one.
        limit: the allowed loss.
        out_of_time: True if no time is left for a candidate.
        safe: a candidate with at most this observed loss will most likely be certified.
        extend: makes a further candidate of those that were tried.
        apart: a candidate that is faster than all others and not cut further than they are:
            its loss says nothing about theirs.
    """
    trials: dict[int, Trial] = {}
    late: list[int] = []

    def loss(i: int) -> float:
        if i not in trials:
            trials[i] = trial(order[i])
        return trials[i].loss

    def no_time(i: int) -> bool:
        if i in trials or not out_of_time(order[i]):
            return False
        late.append(i)
        return True

    low, high = -1, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        if trials and no_time(middle):
            break
        low, high = (middle, high) if loss(middle) <= limit else (low, middle)
    fastest = _tried_apart(apart, trial, out_of_time)
    if fastest is not None:
        trials[len(order) + 1] = fastest
    if low < 0 and (fastest is None or fastest.loss > limit):
        return none_found(trials, limit)
    path = _path(trials, low, safe) if low >= 0 else []
    most = limit
    if fastest is not None and fastest.loss <= limit:
        most = fastest.loss  # slower ones that lose more could only keep it from its turn
    proofs: Proofs = []

    def certificates() -> Iterator[Certificate]:
        for i in (*path, len(order), len(order) + 1, *range(low + 1, len(order))):
            if i >= len(order):
                if i == len(order) and low >= 0:
                    added = _added(trials, low, extend, trial, limit)
                else:
                    added = fastest if i > len(order) else None
                if added is None or added.loss > limit:
                    continue
                trials[i] = added
                proofs.append((added.pipeline, certify(added.pipeline, CONFIDENCE)))
                yield proofs[-1][1]
                continue
            if no_time(i):
                continue
            try:
                if loss(i) > most and i <= low:
                    continue  # decided on the select rows alone, so the order stays fixed
            except PassError:
                if i <= low:
                    raise
                return  # recorded; later candidates are cut further still
            certified = {p for p, _ in proofs}
            extra = (trials[j] for j in (len(order), len(order) + 1) if j in trials)
            if any(trials[i].macs >= x.macs for x in extra if x.pipeline in certified):
                continue  # no faster than one that was added and certified
            proofs.append((order[i], certify(order[i], CONFIDENCE)))
            yield proofs[-1][1]

    return conclude(trials, proofs, fixed_sequence(certificates()), limit, bool(late))


def bisect_trials(
    order: Sequence[Pipeline], trial: Callable[[Pipeline], Trial], limit: float
) -> list[Trial]:
    """Trials of a bisection for the last candidate within the limit, in the order given.

    A candidate that cannot be built counts as one that loses too much: `trial` records it, and
    those after it are pruned further still.
    """
    found: dict[int, Trial] = {}
    low, high = -1, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        holds = False
        with suppress(PassError):
            found[middle] = trial(order[middle])
            holds = found[middle].loss <= limit
        low, high = (middle, high) if holds else (low, middle)
    return [found[i] for i in sorted(found)]


def _tried_apart(
    pipeline: Pipeline | None,
    trial: Callable[[Pipeline], Trial],
    out_of_time: Callable[[Pipeline], bool],
) -> Trial | None:
    """The trial of a candidate apart; None without one, without time, or if it cannot be."""
    if pipeline is None or out_of_time(pipeline):
        return None
    try:
        return trial(pipeline)
    except PassError:  # recorded
        return None


def _added(
    trials: dict[int, Trial],
    low: int,
    extend: Extend,
    trial: Callable[[Pipeline], Trial],
    limit: float,
) -> Trial | None:
    """The trial of a candidate made of others, if it keeps the limit and needs less.

    It comes after `low`, before all candidates that lose more than the limit on select rows.
    """
    best = trials[low]
    pipeline = extend([trials[i] for i in sorted(trials)], best)
    if pipeline is None:
        return None
    try:
        found = trial(pipeline)
    except PassError:  # recorded
        return None
    return found if found.loss <= limit and found.macs < best.macs else None


def safe_loss(rows: int, limit: float) -> float:
    """The largest observed loss of the candidate that certification starts at."""
    return SAFE_SHARE * provable_loss(rows, limit)


def conclude(
    trials: dict[int, Trial],
    proofs: Proofs,
    last: int,
    limit: float,
    late: bool,
) -> SearchResult:
    """The result of a search; `last` = index of the last certificate that holds, or -1."""
    ordered = tuple(trials[i] for i in sorted(trials))
    if last < 0:
        failed = proofs[0][1]
        reason = (
            f"the safest candidate lost {failed.loss:.2%}, proved by {failed.rows} rows to be "
            f"at most {failed.loss_upper:.2%}, above the limit {limit:.2%}{_needed(failed)}"
        )
        return SearchResult(ordered, tuple(proofs), None, failed, reason)
    reason = "the fastest candidate that was certified"
    if len(proofs) > last + 1:
        failed = proofs[last + 1][1]
        reason += f"; the next could lose up to {failed.loss_upper:.2%}{_needed(failed)}"
    elif late:
        reason += f"; stopped by the time limit after {len(trials)} trials"
    return SearchResult(ordered, tuple(proofs), proofs[last][0], proofs[last][1], reason)


def _needed(failed: Certificate) -> str:
    rows = failed.rows_that_would_do
    if rows is None:
        return ""
    return f" (its loss was {failed.loss:.2%}: about {rows:,} labelled rows could prove it)"


def none_found(trials: dict[int, Trial], limit: float) -> SearchResult:
    """The result when every candidate lost more than the limit on the select rows."""
    best = min(trials.values(), key=lambda t: t.loss)
    reason = (
        f"the best candidate, {best.pipeline}, lost {best.loss:.2%} on the select rows, "
        f"above the limit {limit:.2%}"
    )
    return SearchResult(tuple(trials[i] for i in sorted(trials)), (), None, None, reason)


def _path(trials: dict[int, Trial], low: int, safe: float) -> list[int]:
    """Candidates to certify: the tried ones up to a safe one, then every one up to `low`.

    If none is safe, the slowest candidate comes first and then one half-way, tried or not, so
    that a tight budget does not end with nothing at the first failure.
    """
    tried = [i for i in sorted(trials) if i <= low]
    safe_ones = [i for i in tried if trials[i].loss <= safe]
    if not safe_ones:
        return sorted({0, tried[0] // 2, *range(tried[0], low + 1)})
    return [i for i in tried if i < safe_ones[-1]] + list(range(safe_ones[-1], low + 1))
