"""The forward pass of every model, over `Ops`; what differs between models is in `families`.

A branch has three parts, because refit, curvature and distillation stop between them:

    h = prepare(x)              the norm before the branch, if there is one
    u = inner(h)                what the output map reads: [B, T, H*K] or [B, T, F]
    y = finish(x + W u)         output map, residual, and the norm after it, if there is one

Multiplexed models run n rows in one. Before layer `at` rows are mixed, after the last layer
the mixed state is taken apart again:

    mix:    y_t = sum_i r_it x_it * k_i / sum_i r_it     (r_it = 1 where row i has a token)
    demux:  z_i = h * s_i + c_i, then z_i <- LN(z_i + W g(V z_i)) once a demux layer

with one key k, scale s and shift c a slot. The mixed row attends to every position where some
member has a token. Padding has no part in the mean, so it changes no row's answer.
DataMUX, Murahari et al. 2022, https://arxiv.org/abs/2202.09318
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .families.registry import family_of
from .families.sentence import head
from .ops import Ops, Value
from .sizes import Branch


def logits(ops: Ops, branches: Sequence[Branch]) -> Value:
    """The whole pass: logits [B, C], or [B, T, C] where every position has an answer."""
    x = ops.embed()
    for _, x in states(ops, x, branches):  # noqa: B007, B020 - the last one is used
        pass
    return answer(ops, x)


def states(ops: Ops, x: Value, branches: Sequence[Branch]) -> Iterator[tuple[Branch, Value]]:
    """The residual stream after each branch: [B, T, D], or [B, 1, D] once narrowed.

    Args:
        ops: the reading.
        x: the embeddings.
        branches: those that are left.
    """
    e = ops.encoder
    last, mux = Branch(e.last_attention, "attention"), e.mux
    for branch in branches:
        if mux and branch.index >= mux.at:
            x, mux = ops.mix(x), None
        narrow = e.pool_early and branch == last
        units = inner(ops, branch, x, narrow=narrow)
        x = finish(ops, branch, ops.write(branch, units, ops.first(x) if narrow else x))
        yield branch, x
    if mux:  # no layer is left to run on mixed rows
        yield Branch(len(e.layers) - 1, "ffn"), ops.mix(x)


def inner(ops: Ops, branch: Branch, x: Value, *, narrow: bool = False) -> Value:
    """The units of a branch, which its output map reads, from the residual stream x.

    Args:
        ops: the reading.
        branch: which one.
        x: [B, T, D].
        narrow: compute the first position only.
    """
    family = family_of(ops.encoder)
    x = family.prepare(ops, branch, x)
    rows = ops.first(x) if narrow else x
    return ops.gate(branch, family.inner(ops, branch, x, rows))


def finish(ops: Ops, branch: Branch, y: Value) -> Value:
    """The norm after a branch, where the family has one there."""
    return family_of(ops.encoder).finish(ops, branch, y)


def answer(ops: Ops, x: Value) -> Value:
    """Logits of every row from the residual stream after the last branch, [B, T, D]."""
    family, first = family_of(ops.encoder), ops.encoder.reads_first
    x = taken_apart(ops, ops.pool(x) if first else x)
    if first:
        return head(ops, x)
    return head(ops, ops.pool(x)) if ops.encoder.sentence else family.pooled_head(ops, x)


def taken_apart(ops: Ops, x: Value) -> Value:
    """The last states of every row, final norm included: [B, ..., D]."""
    x = family_of(ops.encoder).final(ops, x)
    return ops.unmix(x) if ops.encoder.mux else x
