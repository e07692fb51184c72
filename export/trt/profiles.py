"""Which shapes a TensorRT engine is built for: rows in whole groups, lengths as the data's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.ir import Encoder
from prumux.optimizer.model.row_groups import batch_rows

MULTIPLE = 8
"""Lengths that kernels are chosen for are rounded up to this."""
Span = tuple[int, int, int]
"""The smallest, the one that kernels are chosen for, the largest."""


@dataclass(frozen=True)
class Profile:
    """A range of shapes, and the shape in it that the engine is tuned for."""

    rows: Span
    tokens: Span

    def shapes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Smallest, tuned and largest [B, T]."""
        low, tuned, high = zip(self.rows, self.tokens, strict=True)
        return low, tuned, high

    def covers(self, rows: int, tokens: int) -> bool:
        """Whether inputs of this shape fit."""
        return (
            self.rows[0] <= rows <= self.rows[2] and self.tokens[0] <= tokens <= self.tokens[2]
        )

    def distance(self, rows: int, tokens: int) -> float:
        """How far a shape is from the tuned one, 0 = it is the one."""
        return abs(math.log(rows / self.rows[1])) + abs(math.log(tokens / self.tokens[1]))


def profiles(encoder: Encoder, workload: Sequence[Batch]) -> tuple[Profile, ...]:
    """Profiles for a serving point.

    All lengths that the model takes are covered. Batches have one profile tuned for the
    middle of the workload's lengths and one for its longest, single groups have one.

    Args:
        encoder: its positions limit the length, and it says how many rows are mixed.
        workload: batches at the serving point, at least one.
    """
    n, most = encoder.slots, encoder.most_tokens
    lengths = sorted(batch.input_ids.shape[1] for batch in workload)
    middle, longest = (_rounded(x, most) for x in (lengths[len(lengths) // 2], lengths[-1]))
    largest = max(len(batch.rows) for batch in workload)
    rows = max(n, batch_rows(largest + n - 1, n))  # as many as complete the last group
    single = Profile((n, n, n), (1, middle, most))
    if rows == n:
        return (single,)
    tuned = sorted({middle, longest})
    # A length beyond the workload's is rare, so only the profile of the longest takes it.
    tops = [*tuned[:-1], most]
    spans = [(1, a, b) for a, b in zip(tuned, tops, strict=True)]
    return (*(Profile((n, rows, rows), span) for span in spans), single)


def nearest(found: Sequence[Profile], rows: int, tokens: int) -> int | None:
    """The index of the profile that is tuned for what is most like this shape."""
    fitting = [i for i, profile in enumerate(found) if profile.covers(rows, tokens)]
    return min(fitting, key=lambda i: found[i].distance(rows, tokens), default=None)


def _rounded(length: int, most: int) -> int:
    return min(most, -(-length // MULTIPLE) * MULTIPLE)
