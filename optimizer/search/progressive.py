"""Finds how far to cut where each cut goes on from the one before it and is trained.

Training is dear and the time is given, so most of it goes to one model, and the question is
how far to cut that. Cuts are trained briefly, one on top of the other, while they lose little
more than the limit: the loss falls about with the logarithm of time, so a cut that is a little
too deep after a minute is a good one after half an hour. Then rows are mixed on top of the
deepest, for as long as that loses no more. The last is trained for all the time that is left:
to train another one beside it, as a surer one, was measured to leave too little time for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.pipeline.pipeline import Pipeline

from .accuracy_model import Fit
from .acquisition import FAIR_CHANCE, Candidate
from .bisection import Prove, Trial
from .presets import Family, Step

EASY = 0.25
"""After a cut that loses at most this share of the limit, the next one is passed over."""
GAIN = 1.25
"""What loses so many times the limit after brief training keeps it after long training. On
SST-2 half an hour took away 42 % of what two minutes had left (2.00 to 1.17 points)."""
ENOUGH = 1.5
"""A cut that loses so many times the limit is the last to be tried."""


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


@dataclass
class Way:
    """What was tried so far."""

    tried: list[Trial] = field(default_factory=list)
    """All, in their order."""
    led: list[Trial] = field(default_factory=list)
    """Those that do, and lead to the last, which is trained for long."""
    late: bool = False
    """Whether more would have been tried, had there been time."""

    def text(self, start: str) -> str:
        """Of the last that does."""
        return str(self.led[-1].pipeline) if self.led else start


def ascend(
    family: Family,
    hands: Hands,
    limit: float,
    fitted: Fit,
    *,
    must: bool,
) -> Way:
    """Train cut by cut, then mixing, then one of them for long.

    Args:
        family: the cuts and the mixing there are.
        hands: what does the work.
        limit: the most that may be lost.
        fitted: learns what candidates lose from trials.
        must: at least one cut has to be made.

    Raises:
        PassError: none can be made, and `must`.
    """
    way = Way()
    _cut(way, family, hands, limit, must=must)
    if way.led:
        _mix(way, family, hands, GAIN * limit, fitted)
        _train_long(way, family, hands)
    return way


def _cut(way: Way, family: Family, hands: Hands, limit: float, *, must: bool) -> None:
    """Cut further while that does; the first that can be made stays in any case."""
    ahead, text = list(family.steps), family.start
    passed_over: Step | None = None
    while ahead:
        step = ahead.pop(0)
        if not (minutes := hands.granted(step, len(way.tried))):
            way.late = True
            return
        try:
            found = hands.trial(Pipeline.parse(f"{text},{step.timed(minutes)}"))
        except PassError:  # out of reach, as is all that follows; what is between may not be
            if must and not way.tried:
                raise
            ahead, passed_over = [passed_over] if passed_over else [], None
            continue
        way.tried.append(found)
        text, passed_over = str(found.pipeline), None
        if found.loss <= GAIN * limit or not way.led:
            # Those between lose a little more, with less training behind them.
            way.led = list(way.tried)
        if found.loss > ENOUGH * limit:
            return
        if found.loss <= EASY * limit and len(ahead) > 1:
            passed_over = ahead.pop(0)


def _mix(way: Way, family: Family, hands: Hands, bound: float, fitted: Fit) -> None:
    """Mix on top of the last cut that does, the gentlest first, while that does as well.

    Only where it is faster, and has a fair chance to lose no more than the bound.
    """
    base, number = way.text(family.start), len(way.tried)
    mixes = ((x, hands.granted(x, number)) for x in family.mixes)
    planned = {Pipeline.parse(f"{base},{x.timed(m)}"): x for x, m in mixes if m}
    if not planned:
        return
    # The last cut beside the planned, so that they are timed in the same rounds.
    looked = [*planned, way.led[-1].pipeline, *(x.pipeline for x in way.tried)]
    known = {x.pipeline: x for x in hands.look(looked)}
    for pipeline, step in planned.items():
        last = known.get(way.led[-1].pipeline)
        mixing = known.get(pipeline)
        if last is None or mixing is None or mixing.throughput <= last.throughput:
            continue
        seen = [x for x in way.tried if x.pipeline in known]
        losses = fitted([known[x.pipeline].shape for x in seen], [x.loss for x in seen])
        if losses.predict(mixing.shape).chance(bound) < FAIR_CHANCE:
            continue
        if not hands.granted(step, len(way.tried)):
            way.late = True
            return
        with suppress(PassError):  # recorded; another may do
            found = hands.trial(pipeline)
            way.tried.append(found)
            if found.loss > bound:
                return
            way.led.append(found)


def _train_long(way: Way, family: Family, hands: Hands) -> None:
    """Train the last that does, if there is time."""
    if not (minutes := hands.granted(family.rest, len(way.tried))):
        way.late = True
        return
    text = f"{way.text(family.start)},{family.rest.timed(minutes)}"
    with suppress(PassError):  # recorded; what was trained before is there
        found = hands.trial(Pipeline.parse(text))
        way.tried.append(found)
        way.led.append(found)
