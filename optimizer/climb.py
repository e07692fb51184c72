"""Finds the fastest member of a family that trains and goes on from one cut to the next.

Training is dear and the time is given, so most of it goes to one model, and the question is
how far to cut that. Each cut is trained briefly, until one loses more than the limit: that one
is trained for all the time that is left. The loss falls about with the logarithm of time, so a
cut that is a little too deep after a minute is a good one after half an hour, and what a cut
could still do that is within the limit already is not found out by more training.

Mixing rows on the last cut within the limit competes with that deeper cut: it is trained as
briefly where it is the faster of the two and may well lose no more, and goes on if it does.
Where no cut loses more than the limit, mixing on the deepest has to keep the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from .certify import CONFIDENCE, SAFE_CONFIDENCE, Certificate, fixed_sequence
from .effort import Family, Step
from .errors import PassError
from .explore import FAIR_CHANCE, Candidate
from .pipeline import Pipeline
from .search import Found, Prove, Trial, conclude, none_found
from .surrogate import Fit

EASY = 0.25
"""After a cut that loses at most this share of the limit, the next one is passed over."""


@dataclass(frozen=True)
class Hands:
    """What does the work, and remembers it."""

    trial: Callable[[Pipeline], Trial]
    """Builds and scores a candidate."""
    prove: Prove
    """Certifies one."""
    look: Callable[[Sequence[Pipeline]], Sequence[Candidate]]
    """Shapes and throughput of those that can be made, trained or not."""
    granted: Callable[[Step, int], float]
    """Minutes that a step may train as the trial of this number; 0 = no time left."""


def climb(family: Family, hands: Hands, limit: float, safe_loss: float, fitted: Fit) -> Found:
    """Search a family from its slowest member to its fastest.

    So that hours of training never end with nothing, a safe candidate is certified first,
    with 1 % of the 5 % of errors that are allowed. If it holds, its share passes on to the
    members; if not, they have the other 4 % (the fallback procedure, Wiens 2003).

    Args:
        family: the members.
        hands: what does the work.
        limit: the most that may be lost.
        safe_loss: who seems to lose no more than this will be certified, most likely.
        fitted: learns what candidates lose from trials.

    Raises:
        PassError: no member can be made, the safe one neither.
    """
    safe: Trial | None = None
    with suppress(PassError):  # recorded; the members may still do
        safe = hands.trial(family.safe)
    way = _trained(family, hands, limit, fitted, must=safe is None)
    tried = (*(x for x in (safe,) if x), *way.tried)
    if not any(x.loss <= limit for x in tried):
        return none_found(dict(enumerate(tried)), limit)
    first = None
    if safe and safe.loss <= limit:
        first = hands.prove(safe.pipeline, SAFE_CONFIDENCE)
    spent = 1 - SAFE_CONFIDENCE if first and not first.holds else 0.0
    proofs: list[tuple[Pipeline, Certificate]] = []

    def certificates() -> Iterator[Certificate]:
        for member in _worth_proving(way.led, safe_loss):
            made = hands.prove(member.pipeline, CONFIDENCE + spent)
            proofs.append((member.pipeline, made))
            yield made

    passed, trials = fixed_sequence(certificates()), dict(enumerate(tried))
    if safe is None or first is None:
        return conclude(trials, proofs, passed, limit, way.late)
    if not proofs:  # no member can be made
        proofs, passed = [(safe.pipeline, first)], first.holds - 1
        return conclude(trials, proofs, passed, limit, way.late)
    return _beside(conclude(trials, proofs, passed, limit, way.late), safe, first)


@dataclass(frozen=True)
class _Way:
    """What was tried."""

    led: Sequence[Trial]
    """Those that led to the one trained for long, which is the last."""
    tried: Sequence[Trial]
    """All, in their order."""
    late: bool
    """Whether more would have been tried, had there been time."""


def _trained(family: Family, hands: Hands, limit: float, fitted: Fit, must: bool) -> _Way:
    """Train cut by cut, then mixing, then one of them for long; `must` = at least one."""
    led: list[Trial] = []
    text = kept = family.start
    ahead, late = list(family.steps), False
    passed_over: Step | None = None
    while ahead and not late:
        step = ahead.pop(0)
        if not (minutes := hands.granted(step, len(led))):
            late = True
            break
        try:
            led.append(hands.trial(Pipeline.parse(f"{text},{step.timed(minutes)}")))
        except PassError:  # out of reach, as is all that follows; what is between may not be
            if must and not led:
                raise
            ahead = [passed_over] if passed_over else []
            passed_over = None
            continue
        text, loss, passed_over = str(led[-1].pipeline), led[-1].loss, None
        if loss > limit:
            break
        kept = text
        if loss <= EASY * limit and len(ahead) > 1:
            passed_over = ahead.pop(0)
    if not led:
        return _Way((), (), late)
    bound = max(led[-1].loss, limit)
    mixes = ((x, hands.granted(x, len(led))) for x in family.mixes)
    planned = [Pipeline.parse(f"{kept},{x.timed(minutes)}") for x, minutes in mixes if minutes]
    tried = list(led)
    if mixed := _mixed(planned, hands, led, fitted, bound):
        tried.append(mixed)
        if mixed.loss <= bound:
            led.append(mixed)
    if minutes := hands.granted(family.rest, len(tried)):
        with suppress(PassError):  # recorded; what was trained briefly is there
            longer = f"{led[-1].pipeline},{family.rest.timed(minutes)}"
            led.append(hands.trial(Pipeline.parse(longer)))
            tried.append(led[-1])
    return _Way(led, tried, late or not minutes)


def _mixed(
    planned: Sequence[Pipeline],
    hands: Hands,
    way: Sequence[Trial],
    fitted: Fit,
    bound: float,
) -> Trial | None:
    """The first of the planned that is faster than the last trial, trained.

    None if none is, or none has a fair chance to lose no more than the bound.
    """
    if not planned:
        return None
    # The rival beside the planned, so that they are timed in the same rounds.
    looked = [*planned, *(x.pipeline for x in reversed(way))]
    known = {x.pipeline: x for x in hands.look(looked)}
    seen = [x for x in way if x.pipeline in known]
    losses = fitted([known[x.pipeline].shape for x in seen], [x.loss for x in seen])
    rival = known[way[-1].pipeline].throughput
    for pipeline in planned:
        if (mixing := known.get(pipeline)) is None:
            continue
        chance = losses.predict(mixing.shape).chance(bound)
        if mixing.throughput > rival and chance >= FAIR_CHANCE:
            with suppress(PassError):  # recorded; another may do
                return hands.trial(pipeline)
    return None


def _worth_proving(led: Sequence[Trial], safe_loss: float) -> Sequence[Trial]:
    """The last member, and before it the deepest cut on the way that is safe.

    The first failure ends the proofs, so that one must hold almost surely; trained briefly,
    those near the limit failed (seen twice on SST-2). All this is decided on select rows.
    """
    safe = [x for x in led if x.loss <= safe_loss]
    return led[-1:] if led[-1:] == safe[-1:] else [*safe[-1:], *led[-1:]]


def _beside(found: Found, safe: Trial, first: Certificate) -> Found:
    """What was found, and the safe candidate, which wins if nothing else does."""
    made = replace(found, proofs=((safe.pipeline, first), *found.proofs))
    if found.winner is not None or not first.holds:
        return made
    reason = f"the safe candidate, without training; of those trained, {found.reason}"
    return replace(made, winner=safe.pipeline, certificate=first, reason=reason)
