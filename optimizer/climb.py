"""Certifies what the climb of a family of cuts led to; see `ascent` for the climb itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from .ascent import Hands, Way, ascend
from .certify import CONFIDENCE, Certificate, fixed_sequence, provable_loss
from .effort import Family
from .errors import PassError
from .pipeline import Pipeline
from .search import SAFE_SHARE, Found, Trial, conclude, none_found
from .surrogate import Fit

SAFE_CONFIDENCE = 0.99
"""Of the safe candidate, with 1 % of the 5 % of errors that are allowed, ..."""
SAFE_CHANGED, SAFE_LOST = 0.01, 0.25
"""... where the rows could prove one that changes so many of the answers (int8 alone does) and
loses this share of the limit."""


def climb(family: Family, hands: Hands, limit: float, rows: int, fitted: Fit) -> Found:
    """Search a family from its slowest member to its fastest.

    So that hours of training never end with nothing, a safe candidate is certified first,
    with a share of the errors that are allowed (`safe_confidence`). If it holds, its share
    passes on to the others that are safe and to the members; if not, they have the rest (the
    fallback procedure, Wiens 2003).

    Args:
        family: the members.
        hands: what does the work.
        limit: the most that may be lost.
        rows: how many there are to certify on.
        fitted: learns what candidates lose from trials.

    Raises:
        PassError: no member can be made, none that is safe either.
    """
    safe: list[Trial] = []
    for pipeline in family.safe:
        with suppress(PassError):  # recorded; the members may still do
            safe.append(hands.trial(pipeline))
    way = ascend(family, hands, limit, fitted, must=not safe)
    trials = dict(enumerate((*safe, *way.tried)))
    if not any(x.loss <= limit for x in trials.values()):
        return none_found(trials, limit)
    sound = [x for x in safe if x.loss <= limit]
    members = [*sound[1:], *_worth_proving(way, SAFE_SHARE * provable_loss(rows, limit))]
    errors = 1 - CONFIDENCE
    first: Certificate | None = None
    if sound:
        first = hands.prove(sound[0].pipeline, safe_confidence(rows, limit))
        errors -= 0.0 if first.holds else 1 - first.confidence
    proofs: list[tuple[Pipeline, Certificate]] = []

    def certificates() -> Iterator[Certificate]:
        for member in members if errors else ():
            made = hands.prove(member.pipeline, 1 - errors)
            proofs.append((member.pipeline, made))
            yield made

    passed = fixed_sequence(certificates())
    if first is None:
        return conclude(trials, proofs, passed, limit, way.late)
    if not proofs:  # no member can be made, or none may be asked
        proofs, passed = [(sound[0].pipeline, first)], first.holds - 1
        return conclude(trials, proofs, passed, limit, way.late)
    return _beside(conclude(trials, proofs, passed, limit, way.late), sound[0], first)


def safe_confidence(rows: int, limit: float) -> float:
    """99 %, or all of the 95 % where so few rows could otherwise hardly prove anything.

    The safe candidate is then the only one with a fair chance, and the members, which lose
    more, come after it as in any fixed sequence. Decided before a row is looked at.
    """
    enough = provable_loss(rows, limit, SAFE_CHANGED, SAFE_CONFIDENCE) >= SAFE_LOST * limit
    return SAFE_CONFIDENCE if enough else CONFIDENCE


def _worth_proving(way: Way, safe_loss: float) -> Sequence[Trial]:
    """The last member, and before it the deepest that is safe.

    The first failure ends the proofs, so that one must hold almost surely; trained briefly,
    those near the limit failed (seen twice on SST-2). All this is decided on select rows.
    """
    safe = [x for x in way.led if x.loss <= safe_loss]
    return way.led[-1:] if way.led[-1:] == safe[-1:] else [*safe[-1:], *way.led[-1:]]


def _beside(found: Found, safe: Trial, first: Certificate) -> Found:
    """What was found, and the safe candidate, which wins if nothing else does."""
    made = replace(found, proofs=((safe.pipeline, first), *found.proofs))
    if found.winner is not None or not first.holds:
        return made
    reason = f"the safe candidate, without training; of the others, {found.reason}"
    return replace(made, winner=safe.pipeline, certificate=first, reason=reason)
