"""Certifies what the climb of a family of cuts led to; see `ascent` for the climb itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from .ascent import Hands, Way, ascend
from .certify import CONFIDENCE, SAFE_CONFIDENCE, Certificate, fixed_sequence
from .effort import Family
from .errors import PassError
from .pipeline import Pipeline
from .search import SAFE_SHARE, Found, Trial, conclude, none_found
from .surrogate import Fit


def climb(family: Family, hands: Hands, limit: float, provable: float, fitted: Fit) -> Found:
    """Search a family from its slowest member to its fastest.

    So that hours of training never end with nothing, a safe candidate is certified first,
    with 1 % of the 5 % of errors that are allowed. If it holds, its share passes on to the
    members; if not, they have the other 4 % (the fallback procedure, Wiens 2003).

    Args:
        family: the members.
        hands: what does the work.
        limit: the most that may be lost.
        provable: the most that may be observed to be lost so that the rows can prove it.
        fitted: learns what candidates lose from trials.

    Raises:
        PassError: no member can be made, the safe one neither.
    """
    safe: Trial | None = None
    with suppress(PassError):  # recorded; the members may still do
        safe = hands.trial(family.safe)
    way = ascend(family, hands, limit, fitted, must=safe is None)
    trials = dict(enumerate((*(x for x in (safe,) if x), *way.tried)))
    if not any(x.loss <= limit for x in trials.values()):
        return none_found(trials, limit)
    first = None
    if safe and safe.loss <= limit:
        first = hands.prove(safe.pipeline, SAFE_CONFIDENCE)
    spent = 1 - SAFE_CONFIDENCE if first and not first.holds else 0.0
    proofs: list[tuple[Pipeline, Certificate]] = []

    def certificates() -> Iterator[Certificate]:
        for member in _worth_proving(way, SAFE_SHARE * provable):
            made = hands.prove(member.pipeline, CONFIDENCE + spent)
            proofs.append((member.pipeline, made))
            yield made

    passed = fixed_sequence(certificates())
    if safe is None or first is None:
        return conclude(trials, proofs, passed, limit, way.late)
    if not proofs:  # no member can be made
        proofs, passed = [(safe.pipeline, first)], first.holds - 1
        return conclude(trials, proofs, passed, limit, way.late)
    return _beside(conclude(trials, proofs, passed, limit, way.late), safe, first)


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
    reason = f"the safe candidate, without training; of those trained, {found.reason}"
    return replace(made, winner=safe.pipeline, certificate=first, reason=reason)
