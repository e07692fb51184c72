"""Which rows share a forward pass, and how any number of rows fills whole groups.

A group of n rows is mixed into one; row i of a batch is in group i // n, slot i % n. What is
missing in a last group is filled with that group's own rows, in order, over and over: filler
never comes from elsewhere, so it is the same whatever else is served. A row that takes several
slots gets the mean of its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Run = Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]
"""Inputs [B, T] under their ONNX names to logits."""


def batch_rows(size: int, n: int) -> int:
    """The largest multiple of n up to `size`, at least n."""
    return max(1, size // n) * n


def filled(rows: int, n: int) -> Ints:
    """Indices of `rows` rows followed by the filler that completes the last group of n."""
    index = np.arange(rows)
    tail = rows % n
    if not tail:
        return index
    return np.concatenate([index, index[rows - tail :][np.arange(n - tail) % tail]])


def grouped(
    lengths: Ints, n: int, copies: int = 1, tenants: Sequence[Hashable] | None = None
) -> Ints:
    """Groups of rows that share a forward pass: row indices [groups, n], short rows first.

    Rows of like length share a group, and rows of two tenants never do. With `copies` each
    row is in so many groups, each time in another slot and, where there are rows enough, with
    other partners.
    """
    owners = [None] * len(lengths) if tenants is None else tenants
    rows_of: dict[Hashable, list[int]] = {}
    for i, owner in enumerate(owners):
        rows_of.setdefault(owner, []).append(i)
    found = []
    for rows in rows_of.values():
        order = np.array(rows)[np.argsort(lengths[rows], kind="stable")]
        for shift in range(copies):
            first = order[:shift]  # in the last slots, so that every copy is in another one
            if len(first):
                found.append(first[(np.arange(n) + shift - n) % len(first)])
            parts = (order[i : i + n] for i in range(shift, len(order), n))
            found += [part[np.arange(n) % len(part)] for part in parts]
    groups = np.array(found, dtype=np.int64).reshape(-1, n)
    longest = lengths[groups].max(1) if len(groups) else np.zeros(0, np.int64)
    return groups[np.argsort(longest, kind="stable")]


def answered(
    run: Callable[[Ints], Iterable[NDArray[Any]]],
    lengths: Ints,
    n: int,
    batch: int,
    *,
    copies: int = 1,
    tenants: Sequence[Hashable] | None = None,
) -> list[NDArray[np.float32]]:
    """Logits of each row, padding removed, [C] or [T, C]: the mean over the row's places.

    Args:
        run: logits of the rows with these indices, which are whole groups.
        lengths: tokens of each row.
        n: rows that are mixed into one.
        batch: rows in one run, at least one group.
        copies: groups that each row takes part in.
        tenants: whose each row is; see `grouped`.
    """
    groups, each = grouped(lengths, n, copies, tenants), max(1, batch // n)
    found: list[list[NDArray[np.float32]]] = [[] for _ in lengths]
    for i in range(0, len(groups), each):
        rows = groups[i : i + each].ravel()
        for row, logits in zip(rows, run(rows), strict=True):
            found[row].append(logits if logits.ndim == 1 else logits[: lengths[row]])
    return [x[0] if len(x) == 1 else np.mean(x, axis=0, dtype=np.float32) for x in found]


def mean_of_copies(logits: NDArray[Any], index: Ints, rows: int) -> NDArray[Any]:
    """Logits of `rows` rows: the mean over the places of each in `index`."""
    if len(index) == rows and np.array_equal(index, np.arange(rows)):
        return logits
    total = np.zeros((rows, *logits.shape[1:]), dtype=np.float64)
    np.add.at(total, index, logits)
    copies = np.bincount(index, minlength=rows).reshape(-1, *(1 for _ in logits.shape[1:]))
    return (total / copies).astype(logits.dtype)


def padded(rows: Sequence[Sequence[int] | Ints], length: int, fill: int) -> Ints:
    """Rows of numbers as one array [B, length], `fill` to the right of each."""
    found = np.full((len(rows), length), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found


def in_groups(run: Run, n: int) -> Run:
    """`run`, which wants whole groups of n rows, for any number of rows."""
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
    """Rows in the order of their lengths; a seed draws the order among rows of one length."""
    if seed is None:
        return np.argsort(lengths, kind="stable")
    drawn = np.random.default_rng(seed).permutation(len(lengths))
    found: Ints = drawn[np.argsort(lengths[drawn], kind="stable")]
    return found
