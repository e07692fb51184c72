"""Which layer of a student is compared with which of the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prumux.optimizer.model.ir import Encoder

from .losses import state_error
from .teacher import Seen
from .team import ALONE, Team


def comparable(living: Sequence[int], sizes: Encoder) -> list[int]:
    """Of these layers those whose states belong to one row: all before rows are mixed, and
    the last, in whose place `observe` gives the states that were taken apart."""
    at = sizes.mux.at if sizes.mux else len(sizes.layers)
    return [i for i in living if i < at or i == max(living)]


def layer_pairs(student: Encoder, teacher: Encoder) -> dict[int, int]:
    """Which layer of the teacher each comparable layer of the student should agree with."""
    pairs = all_pairs(student, teacher)
    return {i: pairs[i] for i in comparable(list(pairs), student)}


def all_pairs(student: Encoder, teacher: Encoder) -> dict[int, int]:
    """For each living layer of the student: what stands before its next one should be what
    that one saw in the dense model; what the head reads should be what it read there.
    """
    living = [i for i, layer in enumerate(student.layers) if layer.heads or layer.ffn]
    following = [*living[1:], len(teacher.layers)][: len(living)]
    return {i: after - 1 for i, after in zip(living, following, strict=True)}


def matched_error(
    found: Seen,
    aim: Seen,
    living: list[int],
    real: Tensor,
    at: int | None = None,
    *,
    team: Team = ALONE,
) -> Tensor:
    """Mean error of the teacher's layers, each against the student layer it is matched to.

    Where rows are mixed before layer `at`, layers before it are matched with each other, and
    the last, whose states are taken apart, with the teacher's last. A team's share of a batch
    is matched as all of it.
    """
    if at is not None and living and aim.states:
        last = max(aim.states)
        early = Seen(aim.logits, {i: x for i, x in aim.states.items() if i < min(at, last)})
        below = [i for i in living if i < at and i != max(living)]
        apart = state_error(found.states[max(living)], aim.states[last], real, team)
        if not below or not early.states:
            return apart
        return (matched_error(found, early, below, real, team=team) + apart) / 2
    if not living or not aim.states:
        return found.logits.new_zeros((), dtype=torch.float32)
    with torch.no_grad():
        errors = torch.tensor(
            [
                [float(state_error(found.states[i], t, real, team)) for i in living]
                for t in aim.states.values()
            ]
        )
    pairs = zip(ordered_match(team.total(errors)), aim.states.values(), strict=True)
    return torch.stack(
        [state_error(found.states[living[i]], t, real, team) for i, t in pairs]
    ).mean()


def ordered_match(errors: Tensor) -> list[int]:
    """For every row of [N, M] a column, never falling, so that the sum is least."""
    best, steps = errors[0], []
    for row in errors[1:]:
        least, at = best.cummin(0)
        steps.append(at)
        best = least + row
    found = [int(best.argmin())]
    for at in reversed(steps):
        found.append(int(at[found[-1]]))
    return found[::-1]
