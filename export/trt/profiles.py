"""Optimisation profiles: the ranges of shapes for which a TensorRT engine is built.

Numbers of rows are whole groups of a multiplexed model. Lengths come from the data.

Source:
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-dynamic-shapes.html
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.row_groups import batch_rows
from prumux.optimizer.model.sizes import Encoder

MULTIPLE = 8
"""Tuned lengths are rounded up to a multiple of this many tokens."""
Span = tuple[int, int, int]
"""Smallest size, size for which kernels are tuned, and largest size."""


@dataclass(frozen=True)
class Profile:
    """A range of shapes [B, T], and a shape in this range for which the engine is tuned."""

    rows: Span
    tokens: Span

    def shapes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Smallest, tuned and largest shape [B, T]."""
        low, tuned, high = zip(self.rows, self.tokens, strict=True)
        return low, tuned, high

    def covers(self, rows: int, tokens: int) -> bool:
        """True if the profile accepts inputs of this shape."""
        return (
            self.rows[0] <= rows <= self.rows[2] and self.tokens[0] <= tokens <= self.tokens[2]
        )

    def distance(self, rows: int, tokens: int) -> float:
        """Distance of a shape from the tuned shape: the sum of both absolute log ratios."""
        return abs(math.log(rows / self.rows[1])) + abs(math.log(tokens / self.tokens[1]))


def profiles(encoder: Encoder, workload: Sequence[Batch]) -> tuple[Profile, ...]:
    """The profiles for a serving point. Together they cover every length of the model.

    Batches get two profiles: one is tuned for the workload's median length, and one for its
    longest length. Single groups get one profile.

    Args:
        encoder: has the largest length and the number of rows in a group.
        workload: at least one batch at the serving point.
    """
    n, most = encoder.slots, encoder.most_tokens
    lengths = sorted(batch.input_ids.shape[1] for batch in workload)
    middle, longest = (_rounded(x, most) for x in (lengths[len(lengths) // 2], lengths[-1]))
    largest = max(len(batch.rows) for batch in workload)
    rows = max(n, batch_rows(largest + n - 1, n))  # rounded up to whole groups
    single = Profile((n, n, n), (1, middle, most))
    if rows == n:
        return (single,)
    tuned = sorted({middle, longest})
    # Lengths above the workload's are rare: only the longest profile accepts them.
    tops = [*tuned[:-1], most]
    spans = [(1, a, b) for a, b in zip(tuned, tops, strict=True)]
    return (*(Profile((n, rows, rows), span) for span in spans), single)


def nearest(found: Sequence[Profile], rows: int, tokens: int) -> int | None:
    """Index of the profile with the nearest tuned shape; None if no profile fits."""
    fitting = [i for i, profile in enumerate(found) if profile.covers(rows, tokens)]
    return min(fitting, key=lambda i: found[i].distance(rows, tokens), default=None)


def _rounded(length: int, most: int) -> int:
    return min(most, -(-length // MULTIPLE) * MULTIPLE)
