"""Progressive pruning: each candidate is the one before, pruned further and trained again.

Training is expensive and time is limited, so most of it goes to one model. The search decides
how far to prune this model:

1. Cuts are refitted and trained briefly, each on top of the one before, while their loss is at
   most slightly above the limit. The loss falls about with the logarithm of training time, so
   a slightly too deep cut after a minute is good after half an hour.
2. A cut is not trained if it loses little after its refit. Training that makes a cut worse is
   dropped: in one run, 36 s of training raised the loss of a first cut from 0.49 to 1.27
   points.
3. Multiplexing is added to the last accepted cut, with the same bound on the loss.
4. The last accepted candidate is trained for the remaining time. Training a second, safer
   candidate beside it left too little time for both in measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.pipeline.pipeline import Pipeline

from .accuracy_model import FitLosses
from .acquisition import FAIR_CHANCE, TimedCandidate
from .bisection import Certify, Extend, Trial, no_cascade
from .presets import ProgressiveSchedule, ScheduleStep

EASY = 0.25
"""A cut that loses at most this share of the limit is not trained, and the next one is
skipped."""
GAIN = 1.5
"""A cut that loses up to 1.5x the limit after brief training is expected to meet it after
full training. On SST-2 the loss on test rows was 1.81 points after 1.2 minutes of training,
and 0.33 points after 26 minutes. A cascade can mend the rest."""
MIX_GAIN = 1.25
"""The same for multiplexing."""
ENOUGH = 2.0
"""No further cut is tried after one that loses more than 2x the limit."""


@dataclass(frozen=True)
class SearchActions:
    """The callables that do the work of a search and store its results."""

    trial: Callable[[Pipeline], Trial]
    """Builds and scores a candidate."""
    certify: Certify
    """Certifies a candidate."""
    time_shapes: Callable[[Sequence[Pipeline]], Sequence[TimedCandidate]]
    """Measures shape and throughput of the candidates that can be built."""
    grant_minutes: Callable[[ScheduleStep, int], float]
    """Gives the training minutes of a step, from the number of earlier trainings.

    0 minutes = no time is left."""
    extend: Extend = no_cascade
    """Makes further candidates from the trials."""
    apart: Pipeline | None = None
    """A candidate outside the schedule, faster than all others; see `search_by_bisection`."""


@dataclass
class ProgressiveTrials:
    """The trials of a schedule so far."""

    start: Pipeline
    tried: list[Trial] = field(default_factory=list)
    """All trials, in order."""
    steps: list[Trial] = field(default_factory=list)
    """The better candidate of each cut, refitted or trained, in order."""
    accepted: list[Trial] = field(default_factory=list)
    """Accepted trials, in order; the last one is trained to the end."""
    out_of_time: bool = False
    """True if the time limit ended the schedule."""

    @property
    def deepest(self) -> Pipeline:
        """The last accepted candidate, or the start."""
        return self.accepted[-1].pipeline if self.accepted else self.start

    @property
    def trainings(self) -> int:
        """Number of trials whose last pass trains."""
        return sum(x.pipeline.passes[-1].training is not None for x in self.tried)


def run_schedule(
    schedule: ProgressiveSchedule,
    actions: SearchActions,
    limit: float,
    fit: FitLosses,
    *,
    must: bool,
) -> ProgressiveTrials:
    """Train cut by cut, then multiplexing, then the last accepted candidate for long.

    Args:
        schedule: the cuts and mixes.
        actions: the callables that do the work.
        limit: the allowed loss.
        fit: fits the accuracy model to trials.
        must: whether it is an error if no cut can be built.

    Raises:
        PassError: `must` is True, and no cut can be built.
    """
    trials = ProgressiveTrials(schedule.start)
    _try_cuts(trials, schedule, actions, limit, must=must)
    if trials.accepted:
        _try_mixes(trials, schedule, actions, MIX_GAIN * limit, fit)
        _train_final(trials, schedule, actions)
    return trials


def _try_cuts(
    trials: ProgressiveTrials,
    schedule: ProgressiveSchedule,
    actions: SearchActions,
    limit: float,
    *,
    must: bool,
) -> None:
    """Cut further while the loss allows. The first cut that can be built is accepted."""
    ahead, pipeline = list(schedule.cuts), schedule.start
    skipped: ScheduleStep | None = None
    while ahead and not trials.out_of_time:
        step = ahead.pop(0)
        try:
            found = _cut(trials, pipeline, step, actions, limit)
        except PassError:  # deeper cuts fail, too, but the skipped one may work
            if must and not trials.tried:
                raise
            ahead, skipped = [skipped] if skipped else [], None
            continue
        if found is None:
            return
        trials.steps.append(found)
        pipeline, skipped = found.pipeline, None
        if found.loss <= GAIN * limit or not trials.accepted:
            # Earlier cuts are accepted, too: any larger loss comes from less training.
            trials.accepted = list(trials.steps)
        if found.loss > ENOUGH * limit:
            return
        if found.loss <= EASY * limit and len(ahead) > 1:
            skipped = ahead.pop(0)


def _cut(
    trials: ProgressiveTrials,
    start: Pipeline,
    step: ScheduleStep,
    actions: SearchActions,
    limit: float,
) -> Trial | None:
    """The better candidate of a cut, refitted or trained; None if no time is left."""
    refitted = None
    if step.untrained:
        refitted = actions.trial(start.then(*step.untrained))
        trials.tried.append(refitted)
        if refitted.loss <= EASY * limit:
            return refitted
    if not (minutes := actions.grant_minutes(step, trials.trainings)):
        trials.out_of_time = True
        return refitted
    try:
        trained = actions.trial(start.then(*step.timed(minutes)))
    except PassError:  # recorded by `trial`
        if refitted is None:
            raise
        return refitted
    trials.tried.append(trained)
    return refitted if refitted and refitted.loss < trained.loss else trained


def _try_mixes(
    trials: ProgressiveTrials,
    schedule: ProgressiveSchedule,
    actions: SearchActions,
    bound: float,
    fit: FitLosses,
) -> None:
    """Multiplex the last accepted cut, from the fewest rows, while the loss keeps the bound.

    A mix is tried only if it is faster and has a fair chance to keep the bound.
    """
    base, number = trials.deepest, trials.trainings
    granted = ((x, actions.grant_minutes(x, number)) for x in schedule.mixes)
    planned = {base.then(*x.timed(minutes)): x for x, minutes in granted if minutes}
    if not planned:
        return
    # The last cut and the mixes are timed in the same rounds.
    shapes = [*planned, trials.deepest, *(x.pipeline for x in trials.tried)]
    known = {x.pipeline: x for x in actions.time_shapes(shapes)}
    for pipeline, step in planned.items():
        last = known.get(trials.deepest)
        mixed = known.get(pipeline)
        if last is None or mixed is None or mixed.throughput <= last.throughput:
            continue
        timed = [x for x in trials.tried if x.pipeline in known]
        model = fit([known[x.pipeline].shape for x in timed], [x.loss for x in timed])
        if model.predict(mixed.shape).chance(bound) < FAIR_CHANCE:
            continue
        if not actions.grant_minutes(step, trials.trainings):
            trials.out_of_time = True
            return
        with suppress(PassError):  # recorded by `trial`; another mix may work
            found = actions.trial(pipeline)
            trials.tried.append(found)
            if found.loss > bound:
                return
            trials.accepted.append(found)


def _train_final(
    trials: ProgressiveTrials, schedule: ProgressiveSchedule, actions: SearchActions
) -> None:
    """Train the last accepted candidate, if time is left. Accept the result if not worse."""
    if not (minutes := actions.grant_minutes(schedule.final, trials.trainings)):
        trials.out_of_time = True
        return
    with suppress(PassError):  # recorded by `trial`; the briefly trained one remains
        found = actions.trial(trials.deepest.then(*schedule.final.timed(minutes)))
        trials.tried.append(found)
        if found.loss <= trials.accepted[-1].loss:
            trials.accepted.append(found)
