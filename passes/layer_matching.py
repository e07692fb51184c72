"""Which layer of a student with few layers is compared with which of the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from .losses import state_error
from .teacher import Seen


def matched_error(found: Seen, aim: Seen, living: list[int], real: Tensor) -> Tensor:
    """Mean error of the teacher's layers, each against the student layer it is matched to."""
    if not living or not aim.states:
        return found.logits.new_zeros((), dtype=torch.float32)
    with torch.no_grad():
        errors = torch.tensor(
            [
                [float(state_error(found.states[i], t, real)) for i in living]
                for t in aim.states.values()
            ]
        )
    pairs = zip(ordered_match(errors), aim.states.values(), strict=True)
    return torch.stack(
        [state_error(found.states[living[i]], t, real) for i, t in pairs]
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
