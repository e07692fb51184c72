"""Finds the fastest candidate that keeps the budget.

1. Candidates are ordered by multiply-adds, slowest first. Their sizes are known without any
   refit, because scores are shared.
2. Bisection on the select rows finds the last one whose observed loss is within the limit.
3. From a safe candidate up to that one, and on to those beyond it, each is certified in turn
   on rows that no choice was made on, and the first failure ends it (fixed-sequence testing,
   see `certify`). Beyond, because select rows are often ones that the dense model was trained
   on: it knows them by heart, so that a cut seems to lose up to four times what it does.

No choice here depends on a clock, so the same inputs give the same pipeline (unless there is a
time limit). `trial` and `prove` do the work and remember it; this only decides what is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.pipeline.pipeline import Pipeline

from .certificate import CONFIDENCE, Certificate, fixed_sequence, provable_loss

Prove = Callable[[Pipeline, float], Certificate]
"""Certifies a candidate with this confidence."""
SAFE_SHARE = 0.5
"""Certification starts from a candidate whose observed loss is at most this share of the most
that the rows can certify."""


@dataclass(frozen=True)
class Trial:
    """One candidate, built and scored on the select rows."""

    pipeline: Pipeline
    score: float
    loss: float
    seconds: float
    macs: int
    predicted_ratio: float | None = None
    """Throughput over the dense engine's, as its shape has it in a draft of the engine."""


@dataclass(frozen=True)
class Found:
    """What a search ended with."""

    trials: tuple[Trial, ...]
    proofs: tuple[tuple[Pipeline, Certificate], ...]
    """In the order they were made; the last may have failed."""
    winner: Pipeline | None
    certificate: Certificate | None
    reason: str


def find(
    order: Sequence[Pipeline],
    trial: Callable[[Pipeline], Trial],
    prove: Prove,
    limit: float,
    out_of_time: Callable[[Pipeline], bool],
    *,
    safe: float,
) -> Found:
    """Search candidates that are ordered from the slowest to the fastest.

    Args:
        order: at least one.
        trial: builds and scores one.
        prove: certifies one.
        limit: the most that may be lost.
        out_of_time: whether there is no time left for a candidate.
        safe: a candidate whose observed loss is at most this will be certified, most likely.
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
    if low < 0:
        return none_found(trials, limit)
    path = _path(trials, low, safe)
    proofs: list[tuple[Pipeline, Certificate]] = []

    def certificates() -> Iterator[Certificate]:
        for i in (*path, *range(low + 1, len(order))):
            if no_time(i):
                continue
            try:
                if loss(i) > limit and i <= low:
                    continue  # decided on the select rows alone, so the order stays fixed
            except PassError:
                if i <= low:
                    raise
                return  # recorded; what follows is cut further still
            proofs.append((order[i], prove(order[i], CONFIDENCE)))
            yield proofs[-1][1]

    return conclude(trials, proofs, fixed_sequence(certificates()), limit, bool(late))


def safe_loss(rows: int, limit: float) -> float:
    """The most that a candidate may seem to lose where certification begins; see `find`."""
    return SAFE_SHARE * provable_loss(rows, limit)


def conclude(
    trials: dict[int, Trial],
    proofs: list[tuple[Pipeline, Certificate]],
    last: int,
    limit: float,
    late: bool,
) -> Found:
    """What a search found: `last` is the index of the last proof that holds, or -1."""
    ordered = tuple(trials[i] for i in sorted(trials))
    if last < 0:
        failed = proofs[0][1]
        reason = (
            f"the safest candidate lost {failed.loss:.2%}, proved by {failed.rows} rows to be "
            f"at most {failed.loss_upper:.2%}, above the limit {limit:.2%}"
        )
        return Found(ordered, tuple(proofs), None, failed, reason)
    reason = "the fastest candidate that was certified"
    if len(proofs) > last + 1:
        failed = proofs[last + 1][1]
        reason += f"; the next could lose up to {failed.loss_upper:.2%}"
    elif late:
        reason += f"; stopped by the time limit after {len(trials)} trials"
    return Found(ordered, tuple(proofs), proofs[last][0], proofs[last][1], reason)


def _path(trials: dict[int, Trial], low: int, safe: float) -> list[int]:
    """Candidates to certify: up to a safe one those tried, then every one up to `low`.

    Where none is safe, the slowest of all comes first and one half-way, tried or not, so that
    a tight budget does not end with nothing at the first failure.
    """
    tried = [i for i in sorted(trials) if i <= low]
    sound = [i for i in tried if trials[i].loss <= safe]
    if not sound:
        return sorted({0, tried[0] // 2, *range(tried[0], low + 1)})
    return [i for i in tried if i < sound[-1]] + list(range(sound[-1], low + 1))


def none_found(trials: dict[int, Trial], limit: float) -> Found:
    best = min(trials.values(), key=lambda t: t.loss)
    reason = (
        f"the best candidate, {best.pipeline}, lost {best.loss:.2%} on the select rows, "
        f"above the limit {limit:.2%}"
    )
    return Found(tuple(trials[i] for i in sorted(trials)), (), None, None, reason)
