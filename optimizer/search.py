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

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from .certify import (
    CONFIDENCE,
    SAFE_CONFIDENCE,
    Certificate,
    fixed_sequence,
    provable_loss,
)
from .effort import Family, Step
from .errors import PassError
from .pipeline import Pipeline

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


def climb(
    family: Family,
    trial: Callable[[Pipeline], Trial],
    prove: Prove,
    limit: float,
    granted: Callable[[Step, int], float],
) -> Found:
    """Search a family from its slowest member to its fastest.

    A member is trained until its loss on the select rows is within the limit, then the next
    one goes on from it. The end of the time ends this, or a cut that is out of reach. Then
    the members that were trained for long are certified in this order.

    So that hours of training never end with nothing, a safe candidate is certified first,
    with 1 % of the 5 % of errors that are allowed. If it holds, its share passes on to the
    members; if not, they have the other 4 % (the fallback procedure, Wiens 2003).

    Args:
        family: the members.
        trial: builds and scores one.
        prove: certifies one.
        limit: the most that may be lost.
        granted: minutes that a step may train as the trial of this number; 0 = no time left.
    """
    try:
        safe: Trial | None = trial(family.safe)
    except PassError:  # recorded; the members may still do
        safe = None
    trials, members, late = _trained(family, trial, limit, granted)
    first = prove(safe.pipeline, SAFE_CONFIDENCE) if safe and safe.loss <= limit else None
    held = first is not None and first.holds
    confidence = CONFIDENCE if held else CONFIDENCE + (1 - SAFE_CONFIDENCE)
    proofs: list[tuple[Pipeline, Certificate]] = []

    def certificates() -> Iterator[Certificate]:
        for member in _worth_proving(members):
            proofs.append((member.pipeline, prove(member.pipeline, confidence)))
            yield proofs[-1][1]

    passed = fixed_sequence(certificates())
    found = conclude(trials, proofs, passed, limit, late)
    return found if safe is None or first is None else _beside(found, safe, first)


def _trained(
    family: Family,
    trial: Callable[[Pipeline], Trial],
    limit: float,
    granted: Callable[[Step, int], float],
) -> tuple[dict[int, Trial], list[tuple[Step, Trial]], bool]:
    """All trials, the members they ended in, and whether time ended it; see `climb`."""
    trials: dict[int, Trial] = {}
    members: list[tuple[Step, Trial]] = []
    text, late = family.start, False
    for step in family.steps:
        more, loss = step, math.inf
        while loss > limit:
            if not (minutes := granted(more, len(trials))):
                late = True
                break
            text = f"{text},{more.timed(minutes)}"
            try:
                trials[len(trials)] = trial(Pipeline.parse(text))
            except PassError:
                if not trials:
                    raise
                break  # out of reach, as is all that follows; what there is counts
            loss = trials[len(trials) - 1].loss
            more = Step("distill{minutes=MINUTES}", step.minutes)
        if loss > limit:
            break
        members.append((step, trials[len(trials) - 1]))
    last = trials[len(trials) - 1]
    if not members or members[-1][1] != last:
        members.append((family.steps[len(members)], last))
    return trials, members, late


def _worth_proving(members: Sequence[tuple[Step, Trial]]) -> list[Trial]:
    """The members that were trained for as long as any, or the last where time ended before.

    The others were steps on the way: one that is trained too little may fail, and so end the
    proofs, where a faster one that was trained for long holds (seen twice on SST-2). For the
    same reason one is left out of which a faster one loses at most `SAFE_SHARE`. All this is
    decided on the select rows alone.
    """
    most = max(step.minutes for step, _ in members)
    kept = [
        trial
        for i, (step, trial) in enumerate(members)
        if i == len(members) - 1 or step.minutes == most
    ]
    return [
        x
        for i, x in enumerate(kept)
        if all(other.loss > SAFE_SHARE * x.loss or x.loss <= 0 for other in kept[i + 1 :])
    ]


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


def _beside(found: Found, safe: Trial, first: Certificate) -> Found:
    """What was found, and the safe candidate, which wins if nothing else does."""
    made = replace(
        found,
        trials=(safe, *found.trials),
        proofs=((safe.pipeline, first), *found.proofs),
    )
    if found.winner is not None or not first.holds:
        return made
    reason = f"the safe candidate, without training; of those trained, {found.reason}"
    return replace(made, winner=safe.pipeline, certificate=first, reason=reason)


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
