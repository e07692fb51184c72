"""What a search will ask for next, found by running the search itself on imagined answers.

A search is a function of the answers it gets: losses of trials, certificates. So all that it
may ask next is known without it: give it what is known, and where it asks for more, imagine
that the candidate keeps the limit, and that it does not, and look what either leads to. What
is found so can be computed elsewhere and put into the store; the search then finds it there.
It decides as it would alone, only sooner.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.bisection import Found, Prove, Trial
from prumux.optimizer.search.certificate import Certificate

Try = Callable[[Pipeline], Trial]
Search = Callable[[Try, Prove, Callable[[Pipeline], bool]], Found]
"""Takes what builds and scores a candidate, what certifies one, and who comes too late."""
LOST, KEPT = 2.0, 0.5
"""Imagined losses, in shares of the limit. The lost one first: the bisection of the default
space, which reaches far, mostly loses the first ones."""
REPLAYS = 6
"""At most so many runs of the search for each job that is looked for."""


@dataclass(frozen=True)
class Job:
    """Something that a search asks for."""

    kind: Literal["trial", "proof"]
    pipeline: Pipeline

    def __str__(self) -> str:
        return f"{self.kind} of {self.pipeline}"


@dataclass(frozen=True)
class _World:
    """Answers that are only imagined."""

    losses: Mapping[Pipeline, float]
    proved: frozenset[Pipeline] = frozenset()


class _AskedError(Exception):
    def __init__(self, job: Job) -> None:
        super().__init__(str(job))
        self.job = job


def jobs_ahead(
    search: Search,
    tried: Callable[[Pipeline], Trial | PassError | None],
    proofs: Mapping[Pipeline, Certificate],
    limit: float,
    count: int,
) -> list[Job]:
    """The next things that a search may ask for, the nearest first.

    Args:
        search: must not depend on a clock.
        tried: what is known of a candidate; an error if its trial failed.
        proofs: certificates that were made already.
        limit: the most that may be lost.
        count: how many at most.
    """
    found = dict[Job, None]()
    worlds = deque([_World({})])
    for _ in range(REPLAYS * count):
        if not worlds or len(found) >= count:
            break
        world = worlds.popleft()
        job = _asked(search, tried, proofs, world, limit)
        if job is None:
            continue
        found[job] = None
        if job.kind == "proof":
            worlds.append(_World(world.losses, world.proved | {job.pipeline}))
        else:
            worlds += [
                _World({**world.losses, job.pipeline: share * limit}, world.proved)
                for share in (LOST, KEPT)
            ]
    return list(found)


def _asked(
    search: Search,
    tried: Callable[[Pipeline], Trial | PassError | None],
    proofs: Mapping[Pipeline, Certificate],
    world: _World,
    limit: float,
) -> Job | None:
    """The first thing that a search asks for and that nobody knows or imagines."""

    def trial(pipeline: Pipeline) -> Trial:
        known = tried(pipeline)
        if isinstance(known, PassError):
            raise PassError(str(known), known.exit_code)
        if known is not None:
            return known
        if (loss := world.losses.get(pipeline)) is None:
            raise _AskedError(Job("trial", pipeline))
        return Trial(pipeline, 1 - loss, loss, 0.0, 0)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        if pipeline in proofs:
            return proofs[pipeline]
        if pipeline not in world.proved:
            raise _AskedError(Job("proof", pipeline))
        return Certificate("", 0, 1.0, 1.0, 0.0, -math.inf, confidence, limit, "imagined")

    try:
        search(trial, prove, lambda _: False)
    except _AskedError as asked:
        return asked.job
    except PassError:  # where the search itself would end
        return None
    return None
