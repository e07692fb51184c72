"""Finds the fastest member of a family that trains and goes on from one cut to the next.

Training is dear and the time is given, so most of it goes to one model, and the question is
how far to cut that. Each cut is trained briefly, until one loses more than the limit: that one
is trained for all the time that is left. The loss falls about with the logarithm of time, so a
cut that is a little too deep after a minute is a good one after half an hour, and what a cut
could still do that is within the limit already is not found out by more training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from .certify import CONFIDENCE, SAFE_CONFIDENCE, Certificate, fixed_sequence
from .effort import Family, Step
from .errors import PassError
from .pipeline import Pipeline
from .search import SAFE_SHARE, Found, Prove, Trial, conclude

EASY = 0.25
"""After a cut that loses at most this share of the limit, the next one is passed over."""


def climb(
    family: Family,
    trial: Callable[[Pipeline], Trial],
    prove: Prove,
    limit: float,
    granted: Callable[[Step, int], float],
) -> Found:
    """Search a family from its slowest member to its fastest.

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
    trials, late = _trained(family, trial, limit, granted)
    first = prove(safe.pipeline, SAFE_CONFIDENCE) if safe and safe.loss <= limit else None
    held = first is not None and first.holds
    confidence = CONFIDENCE if held else CONFIDENCE + (1 - SAFE_CONFIDENCE)
    proofs: list[tuple[Pipeline, Certificate]] = []

    def certificates() -> Iterator[Certificate]:
        for member in _worth_proving(trials, limit):
            proofs.append((member.pipeline, prove(member.pipeline, confidence)))
            yield proofs[-1][1]

    passed = fixed_sequence(certificates())
    found = conclude(dict(enumerate(trials)), proofs, passed, limit, late)
    return found if safe is None or first is None else _beside(found, safe, first)


def _trained(
    family: Family,
    trial: Callable[[Pipeline], Trial],
    limit: float,
    granted: Callable[[Step, int], float],
) -> tuple[list[Trial], bool]:
    """The trials, the last one trained for long, and whether there was no time for that."""
    trials: list[Trial] = []
    text, at, last = family.start, 0, len(family.steps) - 1
    while at <= last and (minutes := granted(family.steps[at], len(trials))):
        further = f"{text},{family.steps[at].timed(minutes)}"
        try:
            trials.append(trial(Pipeline.parse(further)))
        except PassError:
            if not trials:
                raise
            break  # out of reach, as is all that follows; what there is counts
        text, loss = further, trials[-1].loss
        if loss > limit:
            break
        at = min(at + 2, last) if loss <= EASY * limit and at < last else at + 1
    minutes = granted(family.rest, len(trials))
    if minutes:
        with suppress(PassError):  # recorded; what was trained briefly is there
            trials.append(trial(Pipeline.parse(f"{text},{family.rest.timed(minutes)}")))
    return trials, not minutes


def _worth_proving(trials: Sequence[Trial], limit: float) -> list[Trial]:
    """The last member, and before it the deepest cut on the way that is clear of the limit.

    The first failure ends the proofs, so that one must hold almost surely; trained briefly,
    those near the limit failed (seen twice on SST-2). All this is decided on select rows.
    """
    last = trials[-1]
    clear = [x for x in trials if x.loss <= SAFE_SHARE * limit]
    return [last] if last in clear else [*clear[-1:], last]


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
