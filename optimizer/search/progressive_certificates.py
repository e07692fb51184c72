"""Certifies what the climb of a family of cuts led to; see `ascent` for the climb itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.pipeline.pipeline import Pipeline

from .accuracy_model import Fit
from .bisection import SAFE_SHARE, Found, Prove, Trial, conclude, none_found
from .certificate import CONFIDENCE, Certificate, fixed_sequence, provable_loss
from .presets import Family
from .progressive import Hands, Way, ascend

Proofs = list[tuple[Pipeline, Certificate]]
SAFE_CONFIDENCE = 0.99
"""Of what is safe, with 1 % of the 5 % of errors that are allowed, ..."""
SAFE_CHANGED, SAFE_LOST = 0.01, 0.25
"""... where the rows could prove one that changes so many of the answers (int8 alone does) and
loses this share of the limit."""


def climb(family: Family, hands: Hands, limit: float, rows: int, fitted: Fit) -> Found:
    """Search a family from its slowest member to its fastest.

    So that hours of training never end with nothing, what is safe is certified first, one
    after the other, with a share of the errors that are allowed (`safe_confidence`). If all of
    it holds, its share passes on to the members; if not, they have the rest (the fallback
    procedure, Wiens 2003).

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

    share = safe_confidence(rows, limit)
    sound = [x for x in safe if x.loss <= limit]
    first, held = _proved(sound, hands.prove, share)
    errors = 1 - CONFIDENCE
    if held < len(sound) - 1:
        errors -= 1 - share
    members = _worth_proving(way, SAFE_SHARE * provable_loss(rows, limit)) if errors else ()
    proofs, passed = _proved(members, hands.prove, 1 - errors)
    if not proofs:  # no member can be made, or none may be asked
        return _fastest(conclude(trials, first, held, limit, way.late), hands)
    found = conclude(trials, proofs, passed, limit, way.late)
    return _fastest(_beside(found, first, held) if first else found, hands)


def safe_confidence(rows: int, limit: float) -> float:
    """99 %, or all of the 95 % where so few rows could otherwise hardly prove anything.

    Then only what is safe has a fair chance, and the members, which lose more, come after it
    as in any fixed sequence. Decided before a row is looked at.
    """
    enough = provable_loss(rows, limit, SAFE_CHANGED, SAFE_CONFIDENCE) >= SAFE_LOST * limit
    return SAFE_CONFIDENCE if enough else CONFIDENCE


def _proved(those: Sequence[Trial], prove: Prove, confidence: float) -> tuple[Proofs, int]:
    """The proofs, in turn until one fails, and the index of the last that holds."""
    proofs: Proofs = []

    def certificates() -> Iterator[Certificate]:
        for one in those:
            proofs.append((one.pipeline, prove(one.pipeline, confidence)))
            yield proofs[-1][1]

    last = fixed_sequence(certificates())
    return proofs, last


def _worth_proving(way: Way, safe_loss: float) -> Sequence[Trial]:
    """The last member, and before it the deepest that is safe.

    The first failure ends the proofs, so that one must hold almost surely; trained briefly,
    those near the limit failed (seen twice on SST-2). All this is decided on select rows.
    """
    safe = [x for x in way.led if x.loss <= safe_loss]
    return way.led[-1:] if way.led[-1:] == safe[-1:] else [*safe[-1:], *way.led[-1:]]


def _beside(found: Found, first: Proofs, held: int) -> Found:
    """What was found; the last of what is safe that holds wins if nothing else does."""
    made = replace(found, proofs=(*first, *found.proofs))
    if found.winner is not None or held < 0:
        return made
    reason = f"a safe candidate, without training; of those trained, {found.reason}"
    winner, certificate = first[held]
    return replace(made, winner=winner, certificate=certificate, reason=reason)


def _fastest(found: Found, hands: Hands) -> Found:
    """What was found, with the fastest of all that hold as the winner.

    All proofs that hold do so together, and a cut that was asked for by its time may have
    come out slower than one that was asked for by its size.
    """
    certified = [x for x in found.proofs if x[1].holds]
    if len(certified) < 2:
        return found
    speeds: dict[Pipeline, float] = {}
    with suppress(PassError):  # none can be timed: the last is taken
        speeds = {x.pipeline: x.throughput for x in hands.look([p for p, _ in certified])}
    winner, certificate = max(reversed(certified), key=lambda x: speeds.get(x[0], 0.0))
    if winner == found.winner:
        return found
    reason = "the fastest candidate that was certified, by the time of its shape"
    return replace(found, winner=winner, certificate=certificate, reason=reason)
