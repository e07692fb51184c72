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
    search = _Search(order, trial, certify, limit, out_of_time)
    low = search.bisect()
    fastest = search.try_apart(apart)
    if low < 0 and fastest is None:
        return none_found(search.trials, limit)
    last = fixed_sequence(search.certificates(low, safe, extend, fastest))
    return conclude(search.trials, search.proofs, last, limit, search.late)


class _Search:
    """Trials and certificates so far; candidates beyond `order` have the numbers after it."""

    def __init__(
        self,
        order: Sequence[Pipeline],
        trial: Callable[[Pipeline], Trial],
        certify: Certify,
        limit: float,
        out_of_time: Callable[[Pipeline], bool],
    ) -> None:
        self.order, self.trial, self.certify = order, trial, certify
        self.limit, self.out_of_time = limit, out_of_time
        self.trials: dict[int, Trial] = {}
        self.proofs: Proofs = []
        self.late = False

    def loss(self, i: int) -> float:
        """The observed loss of a candidate, which is tried unless it was."""
        if i not in self.trials:
            self.trials[i] = self.trial(self.order[i])
        return self.trials[i].loss

    def no_time(self, i: int) -> bool:
        """Whether a candidate would have to be tried, and no time is left for it."""
        late = i not in self.trials and self.out_of_time(self.order[i])
        self.late = self.late or late
        return late

    def bisect(self) -> int:
        """The last candidate that keeps the limit on the select rows; -1 if none does."""
        low, high = -1, len(self.order)
        while high - low > 1:
            middle = (low + high) // 2
            if self.trials and self.no_time(middle):
                break
            keeps = self.loss(middle) <= self.limit
            low, high = (middle, high) if keeps else (low, middle)
        return low

    def try_apart(self, pipeline: Pipeline | None) -> Trial | None:
        """The trial of a candidate apart, if it can be built and keeps the limit."""
        if pipeline is None or self.out_of_time(pipeline):
            return None
        try:
            found = self.trial(pipeline)
        except PassError:  # recorded
            return None
        self.trials[len(self.order) + 1] = found
        return found if found.loss <= self.limit else None

    def certificates(
        self, low: int, safe: float, extend: Extend, fastest: Trial | None
    ) -> Iterator[Certificate]:
        """Certify candidates in turn, from the slowest; the order follows from select rows."""
        most = self.limit
        if fastest is not None:  # slower ones that lose more could only keep it from its turn
            most = fastest.loss
        for i in _path(self.trials, low, safe) if low >= 0 else ():
            if not self.no_time(i) and self.loss(i) <= most:
                yield self._proof(self.order[i])
        added = None
        if low >= 0:
            added = _added(self.trials, low, extend, self.trial, self.limit)
        if added is not None:
            self.trials[len(self.order)] = added
            yield self._proof(added.pipeline)
        if fastest is not None:
            yield self._proof(fastest.pipeline)
            return
        for i in range(low + 1, len(self.order)):
            if self.no_time(i):
                continue
            try:
                self.loss(i)
            except PassError:
                return  # recorded; later candidates are cut further still
            if added is None or self.trials[i].macs < added.macs:
                yield self._proof(self.order[i])

    def _proof(self, pipeline: Pipeline) -> Certificate:
        self.proofs.append((pipeline, self.certify(pipeline, CONFIDENCE)))
        return self.proofs[-1][1]


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
