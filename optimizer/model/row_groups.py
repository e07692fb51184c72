"""Which rows of a batch run together: groups that share a forward pass, and deferred rows.

A group of n rows is mixed into one row. Row i of a batch is in group i // n, slot i % n. If
the last group has fewer rows, its own rows are repeated in order until it has n. Filler rows
never come from other groups, so they do not depend on other requests. A row that takes several
slots gets the mean of its logits.

In a cascade a second stage answers the deferred rows, see `cascade.py`. This file has the rule
that chooses them, for torch and for engines. It imports only the standard library and numpy,
because the Triton packer has a copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
RowLogits = NDArray[np.float32] | list[NDArray[np.float32]]
"""Logits of rows without padding: one array [N, C], or one array [T, C] per row."""
Run = Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]
"""Maps inputs [B, T], by ONNX name, to logits."""
PARTS = 1_000_000
"""Shares of a batch are whole millionths, so all engines round in the same way."""


def batch_rows(size: int, n: int) -> int:
    """The largest multiple of n that is at most `size`, but at least n."""
    return max(1, size // n) * n


def filled(rows: int, n: int) -> Ints:
    """Indices of `rows` rows, then repeated rows of the last group until it has n rows."""
    index = np.arange(rows)
    tail = rows % n
    if not tail:
        return index
    return np.concatenate([index, index[rows - tail :][np.arange(n - tail) % tail]])


def grouped(
    lengths: Ints, n: int, copies: int = 1, tenants: Sequence[Hashable] | None = None
) -> Ints:
    """Groups of rows that share a forward pass: row indices [groups, n], short rows first.

    A group has rows of similar length and of one tenant. Each row is in `copies` groups, each
    time in another slot. If there are enough rows, the row also has other partners each time.
    """
    found = [np.zeros((0, n), np.int64)]
    for rows in _rows_of_tenants(len(lengths), tenants):
        order = rows[np.argsort(lengths[rows], kind="stable")]
        for shift in range(copies):
            first = order[:shift]  # take the last slots: every copy is in another slot
            if len(first):
                found.append(first[(np.arange(n) + shift - n) % len(first)][None])
            rest = order[shift:]
            found.append(rest[filled(len(rest), n)].reshape(-1, n))
    groups = np.concatenate(found)
    longest = lengths[groups].max(1) if len(groups) else np.zeros(0, np.int64)
    return groups[np.argsort(longest, kind="stable")]


def _rows_of_tenants(rows: int, tenants: Sequence[Hashable] | None) -> list[Ints]:
    """The row indices of each tenant."""
    if tenants is None:
        return [np.arange(rows)]
    found: dict[Hashable, list[int]] = {}
    for i, tenant in enumerate(tenants):
        found.setdefault(tenant, []).append(i)
    return [np.array(x) for x in found.values()]


def answered(
    run: Callable[[Ints], NDArray[Any] | list[NDArray[Any]]],
    lengths: Ints,
    n: int,
    batch: int,
    *,
    copies: int = 1,
    tenants: Sequence[Hashable] | None = None,
) -> RowLogits:
    """Logits of each row without padding: the mean over the row's slots in the groups.

    Args:
        run: returns the logits of the rows with these indices, which form whole groups.
        lengths: number of tokens of each row.
        n: number of rows that are mixed into one.
        batch: number of rows in one run, at least one group.
        copies: number of groups that each row is in.
        tenants: the tenant of each row, see `grouped`.

    Returns:
        One array [N, C]; for models with one answer per token, a list of arrays [T, C].
    """
    return answered_in_order(
        lambda order: lambda start, stop: run(order[start:stop]),
        grouped(lengths, n, copies, tenants),
        lengths,
        batch,
    )


def answered_in_order(
    prepare: Callable[[Ints], Callable[[int, int], NDArray[Any] | list[NDArray[Any]]]],
    groups: Ints,
    lengths: Ints,
    batch: int,
) -> RowLogits:
    """Logits of each row, as in `answered`.

    Args:
        prepare: takes the row indices in the order in which they run. It returns a function
            `run(start, stop)`, which returns the logits of this slice of the rows.
        groups: see `grouped`.
        lengths: number of tokens of each row.
        batch: number of rows in one run, at least one group.
    """
    order, each = groups.ravel(), batch_rows(batch, groups.shape[1])
    run = prepare(order)
    starts = range(0, len(order), each)
    answers = [run(i, min(i + each, len(order))) for i in starts]
    if not answers or answers[0][0].ndim == 1:
        logits = np.concatenate(answers) if answers else np.zeros((0, 0), np.float32)
        return mean_of_copies(logits, order, len(lengths))
    found: list[list[NDArray[np.float32]]] = [[] for _ in lengths]
    for start, some in zip(starts, answers, strict=True):
        for row, logits in zip(order[start : start + each], some, strict=True):
            found[row].append(logits[: lengths[row]])
    return [x[0] if len(x) == 1 else np.mean(x, axis=0, dtype=np.float32) for x in found]


def mean_of_copies(logits: NDArray[Any], index: Ints, rows: int) -> NDArray[Any]:
    """Logits of `rows` rows: the mean over all occurrences of each row in `index`."""
    if len(index) == rows:  # every row occurs once
        found = np.empty_like(logits)
        found[index] = logits
        return found
    total = np.zeros((rows, *logits.shape[1:]), dtype=np.float64)
    np.add.at(total, index, logits)
    copies = np.bincount(index, minlength=rows).reshape(-1, *(1 for _ in logits.shape[1:]))
    return (total / copies).astype(logits.dtype)


def padded(rows: Sequence[Sequence[int] | Ints], length: int, fill: int) -> Ints:
    """Rows of numbers as one array [B, length], padded with `fill` on the right."""
    found = np.full((len(rows), length), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found


def in_groups(run: Run, n: int) -> Run:
    """Make `run`, which needs whole groups of n rows, accept any number of rows."""
    if n == 1:
        return run

    def filled_run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        rows = len(inputs["input_ids"])
        index = filled(rows, n)
        if len(index) == rows:
            return run(inputs)
        logits = run({name: np.asarray(x)[index] for name, x in inputs.items()})
        return mean_of_copies(logits, index, rows)

    return filled_run


def like_length(lengths: Ints, seed: int | None = None) -> Ints:
    """Row indices sorted by length. A seed shuffles the rows of equal length."""
    if seed is None:
        return np.argsort(lengths, kind="stable")
    drawn = np.random.default_rng(seed).permutation(len(lengths))
    found: Ints = drawn[np.argsort(lengths[drawn], kind="stable")]
    return found


def margins(logits: NDArray[Any]) -> NDArray[np.float32]:
    """The difference between the two best logits of each row: [B, C] -> [B]."""
    best = np.partition(logits.astype(np.float32, copy=False), -2, axis=-1)
    with np.errstate(invalid="ignore"):  # the logits may be infinite
        found: NDArray[np.float32] = best[..., -1] - best[..., -2]
    return found


def most_rows(rows: int, max_share: float) -> int:
    """The largest number of deferred rows in a batch: `max_share` of its rows, rounded up.

    Example:
        >>> most_rows(32, 0.1), most_rows(1, 0.1), most_rows(10, 0.1)
        (4, 1, 1)
    """
    return -(-rows * parts(max_share) // PARTS)


def parts(max_share: float) -> int:
    """A share in millionths, at least 1."""
    return max(1, round(max_share * PARTS))


def deferred_rows(logits: NDArray[Any], threshold: float, max_share: float = 1.0) -> Ints:
    """Indices of the rows that the second stage answers, [K], ascending.

    The arguments are the first stage's logits [B, C] and the rule. A row with a nan margin is
    not deferred, so its logits show the fault.
    """
    margin = margins(logits)
    below = np.flatnonzero(margin < np.float32(threshold))
    most = most_rows(len(logits), max_share)
    if len(below) > most:
        below = np.sort(below[margin[below].argsort(kind="stable")[:most]])
    return below


def deferring(first: Run, second: Run, threshold: float, max_share: float) -> Run:
    """Make one `run` of both stages. The second stage runs only if rows are deferred."""

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        logits = first(inputs)
        rows = deferred_rows(logits, threshold, max_share)
        if not len(rows):
            return logits
        found = logits.copy()
        found[rows] = second({name: np.asarray(x)[rows] for name, x in inputs.items()})
        return found

    return run
