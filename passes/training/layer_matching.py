"""Pairs of a student's layer and a teacher's layer. The losses compare their states.

Pairs are fixed for `distill` and `warm-up`. In `learn-masks` layers can vanish and return, so
the pairs are chosen for each batch, with the least total error, as in CoFi (Xia et al.,
https://arxiv.org/abs/2204.00408).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prumux.optimizer.model.sizes import Encoder

from .data_parallel import ALONE, DataParallel
from .losses import state_error
from .teacher import ModelOutputs


def comparable(living: Sequence[int], sizes: Encoder) -> list[int]:
    """Select the `living` layers whose states belong to single rows.

    These are all layers before rows are mixed, and the last layer of `living`. `observe`
    returns demultiplexed states for the last layer.
    """
    at = sizes.mux.at if sizes.mux else len(sizes.layers)
    return [i for i in living if i < at or i == max(living)]


def layer_pairs(student: Encoder, teacher: Encoder) -> dict[int, int]:
    """The teacher's layer for each comparable layer of the student."""
    pairs = all_pairs(student, teacher)
    return {i: pairs[i] for i in comparable(list(pairs), student)}


def all_pairs(student: Encoder, teacher: Encoder) -> dict[int, int]:
    """The teacher's layer for each remaining layer of the student.

    Every remaining layer i should read the states that it read in the given model. It now
    reads the output of the remaining layer before it. So that layer is paired with layer i - 1
    of the given model. The last remaining layer is paired with the given model's last layer.
    """
    living = [i for i, layer in enumerate(student.layers) if layer.heads or layer.ffn]
    following = [*living[1:], len(teacher.layers)][: len(living)]
    return {i: after - 1 for i, after in zip(living, following, strict=True)}


def matched_error(
    found: ModelOutputs,
    aim: ModelOutputs,
    living: list[int],
    real: Tensor,
    at: int | None = None,
    *,
    parallel: DataParallel = ALONE,
) -> Tensor:
    """Mean error over the teacher's layers. Each is compared with its matched student layer.

    Args:
        found, aim: outputs of student and teacher.
        living: layers of the student that may be matched.
        real: bool [B, T], True on real tokens.
        at: the layer before which rows are mixed, or None. Earlier layers are matched with the
            teacher's earlier layers. The last layer, which is demultiplexed, is matched with
            the teacher's last layer.
        parallel: the processes that share the batch. Layers are matched on the whole batch.
    """
    if at is not None and living and aim.states:
        last = max(aim.states)
        states = {i: x for i, x in aim.states.items() if i < min(at, last)}
        early = ModelOutputs(aim.logits, states)
        below = [i for i in living if i < at and i != max(living)]
        apart = state_error(found.states[max(living)], aim.states[last], real, parallel)
        if not below or not early.states:
            return apart
        return (matched_error(found, early, below, real, parallel=parallel) + apart) / 2
    if not living or not aim.states:
        return found.logits.new_zeros((), dtype=torch.float32)
    with torch.no_grad():
        errors = torch.tensor(
            [
                [float(state_error(found.states[i], t, real, parallel)) for i in living]
                for t in aim.states.values()
            ]
        )
    pairs = zip(ordered_match(parallel.total(errors)), aim.states.values(), strict=True)
    return torch.stack(
        [state_error(found.states[living[i]], t, real, parallel) for i, t in pairs]
    ).mean()


def ordered_match(errors: Tensor) -> list[int]:
    """Choose a column for every row of [N, M]: ascending or equal, with least total error.

    The algorithm is dynamic programming. For the rows so far, best[j] is the least total error
    if the last row has column j.
    """
    best, steps = errors[0], []
    for row in errors[1:]:
        least, at = best.cummin(0)
        steps.append(at)
        best = least + row
    found = [int(best.argmin())]
    for at in reversed(steps):
        found.append(int(at[found[-1]]))
    return found[::-1]
