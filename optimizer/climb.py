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
from .search import SAFE_SHARE, Found, Prove, Trial, conclude
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


def climb(family: Family, hands: Hands, limit: float, fitted: Fit) -> Found:
    """Search a family from its slowest member to its fastest.

    So that hours of training never end with nothing, a safe candidate is certified first,
    with 1 % of the 5 % of errors that are allowed. If it holds, its share passes on to the
    members; if not, they have the other 4 % (the fallback procedure, Wiens 2003).

    Args:
        family: the members.
        hands: what does the work.
        limit: the most that may be lost.
        fitted: learns what candidates lose from trials.
    """
    try:
        safe: Trial | None = hands.trial(family.safe)
    except PassError:  # recorded; the members may still do
        safe = None
    way, others, late = _trained(family, hands, limit, fitted)
    held = None
    if safe and safe.loss <= limit:
        held = hands.prove(safe.pipeline, SAFE_CONFIDENCE)
    spent = 0.0 if held and held.holds else 1 - SAFE_CONFIDENCE
    proofs: list[tuple[Pipeline, Certificate]] = []

    def certificates() -> Iterator[Certificate]:
        for member in _worth_proving(way, limit):
            made = hands.prove(member.pipeline, CONFIDENCE + spent)
            proofs.append((member.pipeline, made))
            yield made

    passed = fixed_sequence(certificates())
    found = conclude(dict(enumerate((*others, *way))), proofs, passed, limit, late)
    return found if safe is None or held is None else _beside(found, safe, held)


def _trained(
    family: Family, hands: Hands, limit: float, fitted: Fit
) -> tuple[list[Trial], list[Trial], bool]:
    """The trials that led to the one trained for long, others, whether time was up before."""
    way: list[Trial] = []
    text = kept = family.start
    at, last = 0, len(family.steps) - 1
    while at <= last and (minutes := hands.granted(family.steps[at], len(way))):
        further = f"{text},{family.steps[at].timed(minutes)}"
        try:
            way.append(hands.trial(Pipeline.parse(further)))
        except PassError:
            if not way:
                raise
            break  # out of reach, as is all that follows; what there is counts
        text, loss = further, way[-1].loss
        if loss > limit:
            break
        kept = text
        at = min(at + 2, last) if loss <= EASY * limit and at < last else at + 1
    others: list[Trial] = []
    bound = max(way[-1].loss, limit)
    mixes = ((x, hands.granted(x, len(way))) for x in family.mixes)
    planned = [Pipeline.parse(f"{kept},{x.timed(minutes)}") for x, minutes in mixes if minutes]
    if mixed := _mixed(planned, hands, way, fitted, bound):
        (way if mixed.loss <= bound else others).append(mixed)
    text, number = str(way[-1].pipeline), len(way) + len(others)
    minutes = hands.granted(family.rest, number)
    if minutes:
        with suppress(PassError):  # recorded; what was trained briefly is there
            way.append(hands.trial(Pipeline.parse(f"{text},{family.rest.timed(minutes)}")))
    return way, others, not minutes


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
    known = {x.pipeline: x for x in hands.look([*(x.pipeline for x in way), *planned])}
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
