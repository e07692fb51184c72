"""Bisection: finds the fastest candidate of a one-dimensional space that keeps the budget.

1. Candidates are sorted by multiply-adds, the slowest first. Sizes are known without refits,
   because all candidates share their importance scores.
2. Bisection on the select rows finds the last candidate i whose expected loss L(i) is at most
   the limit, see `unseen_loss.py`. It assumes that the loss rises along the order.
3. Candidates are certified in turn: first from a safe one up to i, then those beyond i.
   Cascades and other candidates outside the order stand between them by their chance of a
   certificate. No answer of a candidate to certify rows decides what comes next. The first
   failure ends the sequence (fixed-sequence testing, see `fixed_sequence` in certificate.py;
   Learn-then-Test, https://arxiv.org/abs/2110.01052).

Candidates beyond i may hold, because the expected loss has an error.

Without a time limit no choice depends on a clock, so the same inputs give the same pipeline.
The callables `trial` and `certify` do the work and store its results. This module only decides
which candidate comes next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.certificate.certificate import CONFIDENCE, Certificate, fixed_sequence
from prumux.optimizer.certificate.provable import provable_loss
from prumux.optimizer.pipeline.pipeline import Pipeline

from .certification_order import certification_order
from .unseen_loss import USUAL_CHANGE, LossEstimate

Certify = Callable[[Pipeline, float], Certificate]
"""A function that certifies a candidate at a confidence level."""
Proofs = list[tuple[Pipeline, Certificate]]
"""Certificates in the order in which they were made."""
Extend = Callable[["Sequence[Trial]", "float | None"], "Sequence[Pipeline]"]
"""A function that makes further candidates from all trials so far.

They need fewer multiply-adds for one row than the second argument; None = any number."""
SAFE_SHARE = 0.5
"""Largest observed loss of a safe candidate, as a share of the largest loss that the rows can
certify. Certification starts at a safe candidate."""


@dataclass(frozen=True)
class Trial:
    """One candidate, built and scored on the select rows."""

    pipeline: Pipeline
    score: float
    """Score on the select rows."""
    loss: float
    """Expected loss on unseen rows, see `unseen_loss.py`. Searches use this loss."""
    seconds: float
    macs: int
    predicted_ratio: float | None = None
    """Ratio to the dense engine's throughput, measured with an untrained model."""
    select_loss: float | None = None
    """Loss on the select rows; None = `loss` is this loss."""
    changed: float = USUAL_CHANGE
    """See `LossEstimate.changed`."""
    estimate_rows: float = math.inf
    """See `LossEstimate.rows`."""

    @property
    def observed_loss(self) -> float:
        """The loss on the select rows."""
        return self.loss if self.select_loss is None else self.select_loss

    @property
    def estimate(self) -> LossEstimate:
        """The expected loss, with the facts that its certificate depends on."""
        return LossEstimate(self.loss, self.changed, self.estimate_rows)


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search."""

    trials: tuple[Trial, ...]
    proofs: tuple[tuple[Pipeline, Certificate], ...]
    """Certificates in the order in which they were made. The last one may have failed."""
    winner: Pipeline | None
    certificate: Certificate | None
    reason: str


def no_cascade(tried: Sequence[Trial], most_macs: float | None) -> Sequence[Pipeline]:
    """Add no candidate."""
    del tried, most_macs
    return ()


def search_by_bisection(
    order: Sequence[Pipeline],
    trial: Callable[[Pipeline], Trial],
    certify: Certify,
    limit: float,
    out_of_time: Callable[[Pipeline], bool],
    *,
    safe: float,
    rows: int,
    extend: Extend = no_cascade,
    apart: Pipeline | None = None,
) -> SearchResult:
    """Search candidates that are ordered from the slowest to the fastest.

    Args:
        order: the candidates, at least one.
        trial: builds and scores a candidate.
        certify: certifies a candidate.
        limit: the allowed loss.
        out_of_time: True if no time is left for a candidate.
        safe: a candidate with at most this observed loss will most likely be certified.
        extend: makes further candidates from the trials.
        rows: number of certify rows.
        apart: a candidate outside the order, faster than all others. The losses of the others
            do not predict its loss.
    """
    search = _Search(order, trial, certify, limit, rows, out_of_time)
    low = search.bisect()
    fastest = search.try_apart(apart)
    if low < 0 and fastest is None:
        return none_found(search.trials, limit)
    last = fixed_sequence(search.certificates(low, safe, extend, fastest))
    return conclude(search.trials, search.proofs, last, limit, search.late)


class _Search:
    """Trials and certificates so far. Candidates outside `order` have numbers after it."""

    def __init__(  # noqa: PLR0917 - all that a search depends on
        self,
        order: Sequence[Pipeline],
        trial: Callable[[Pipeline], Trial],
        certify: Certify,
        limit: float,
        rows: int,
        out_of_time: Callable[[Pipeline], bool],
    ) -> None:
        self.order, self.trial, self.certify = order, trial, certify
        self.limit, self.rows, self.out_of_time = limit, rows, out_of_time
        self.trials: dict[int, Trial] = {}
        self.proofs: Proofs = []
        self.late = False

    def loss(self, i: int) -> float:
        """The observed loss of a candidate. It is tried now unless it was tried before."""
        if i not in self.trials:
            self.trials[i] = self.trial(self.order[i])
        return self.trials[i].loss

    def no_time(self, i: int) -> bool:
        """True if a candidate is not tried yet, and no time is left for it."""
        late = i not in self.trials and self.out_of_time(self.order[i])
        self.late = self.late or late
        return late

    def bisect(self) -> int:
        """Index of the last candidate within the limit on the select rows; -1 = none."""
        low, high = -1, len(self.order)
        while high - low > 1:
            middle = (low + high) // 2
            if self.trials and self.no_time(middle):
                break
            keeps = self.loss(middle) <= self.limit
            low, high = (middle, high) if keeps else (low, middle)
        return low

    def try_apart(self, pipeline: Pipeline | None) -> Trial | None:
        """The trial of the candidate `apart`; None if it fails or is above the limit."""
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
        """Certify candidates in turn, from the slowest. Select rows decide the order.

        Candidates outside the order have their turn before the first one that is less sure of
        a certificate. A candidate that is slower than a certified one is left out.
        """
        path = _path(self.trials, low, safe) if low >= 0 else []
        further, least = self._further(low, extend, fastest), math.inf
        for i in (*path, *range(low + 1, len(self.order))):
            if self.no_time(i):
                continue
            try:
                self.loss(i)
            except PassError:
                break  # recorded by `trial`; later candidates are pruned even further
            single = self.trials[i]
            if i <= low and single.loss > self.limit:
                continue
            while further and self._chance(further[0]) >= self._chance(single):
                least = min(least, further[0].macs)
                yield self._proof(further.pop(0).pipeline)
            if fastest is not None and least <= fastest.macs:
                return
            if single.macs < least:
                yield self._proof(single.pipeline)
        for one in further:
            yield self._proof(one.pipeline)

    def _further(self, low: int, extend: Extend, fastest: Trial | None) -> list[Trial]:
        """Candidates outside the order that may be certified, the surest first."""
        tried = [self.trials[i] for i in sorted(self.trials)]
        most = self.trials[low].macs if low >= 0 else None
        added = try_each(extend(tried, most), self.trial)
        for number, one in enumerate(added, len(self.order) + 2):
            self.trials[number] = one
        outside = [x for x in (*added, fastest) if x is not None and x.loss <= self.limit]
        return certification_order(outside, self.limit, self.rows, most)

    def _chance(self, one: Trial) -> float:
        return one.estimate.chance(self.limit, self.rows)

    def _proof(self, pipeline: Pipeline) -> Certificate:
        self.proofs.append((pipeline, self.certify(pipeline, CONFIDENCE)))
        return self.proofs[-1][1]


def bisect_trials(
    order: Sequence[Pipeline], trial: Callable[[Pipeline], Trial], limit: float
) -> list[Trial]:
    """Bisect for the last candidate within the limit; return all trials, in the given order.

    A candidate that cannot be built counts as above the limit, because later candidates are
    pruned even further. `trial` records the failure.
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


def try_each(pipelines: Iterable[Pipeline], trial: Callable[[Pipeline], Trial]) -> list[Trial]:
    """The trials of candidates, without those that cannot be built; `trial` records these."""
    found = []
    for one in pipelines:
        with suppress(PassError):
            found.append(trial(one))
    return found


def safe_loss(rows: int, limit: float) -> float:
    """The largest observed loss of a candidate at which certification may start."""
    return SAFE_SHARE * provable_loss(rows, limit)


def conclude(
    trials: dict[int, Trial],
    proofs: Proofs,
    last: int,
    limit: float,
    late: bool,
) -> SearchResult:
    """The result of a search; `last` is the index of the last valid certificate, or -1."""
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
    """The result of a search in which all candidates lost too much on the select rows."""
    best = min(trials.values(), key=lambda t: t.loss)
    reason = (
        f"the best candidate, {best.pipeline}, lost {best.loss:.2%} on the select rows, "
        f"above the limit {limit:.2%}"
    )
    return SearchResult(tuple(trials[i] for i in sorted(trials)), (), None, None, reason)


def _path(trials: dict[int, Trial], low: int, safe: float) -> list[int]:
    """Candidates to certify: tried ones up to the last safe one, then every one up to `low`.

    If no candidate is safe, the slowest one comes first, and then one half-way to the first
    tried one. Otherwise a tight budget could end without a result at the first failure.
    """
    tried = [i for i in sorted(trials) if i <= low]
    safe_ones = [i for i in tried if trials[i].loss <= safe]
    if not safe_ones:
        return sorted({0, tried[0] // 2, *range(tried[0], low + 1)})
    return [i for i in tried if i < safe_ones[-1]] + list(range(safe_ones[-1], low + 1))
