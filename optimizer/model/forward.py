"""The forward pass of every model, written with `Ops`. `families` contains the differences.

A branch has three parts. Refit, curvature and distillation read the values between them:

    h = prepare(x)              the norm before the branch, if there is one
    u = inner(h)                the input of the output map: [B, T, H*K] or [B, T, F]
    y = finish(x + W u)         output map, residual, and the norm after it, if there is one

Multiplexed models run n rows as one mixed row. Rows are mixed before layer `at`. After the
last layer, the mixed state is separated into one state per row:

    mix:    y_t = sum_i r_it x_it * k_i / sum_i r_it     (r_it = 1 if row i has a token at t)
    demux:  z_i = h * s_i + c_i, then z_i <- LN(z_i + W g(V z_i)) for each demux layer

Every slot i has its own key k_i, scale s_i and shift c_i. The mixed row attends to every
position at which some row has a token. Padding is left out of the mean, so it changes no row's
answer. DataMUX, Murahari et al. 2022, https://arxiv.org/abs/2202.09318
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .families.registry import family_of
from .families.sentence import head
from .ops import Ops, Value
from .sizes import Branch


def logits(ops: Ops, branches: Sequence[Branch]) -> Value:
    """The whole forward pass: logits [B, C], or [B, T, C] if every position has an answer."""
    x = ops.embed()
    for _, x in states(ops, x, branches):  # noqa: B007, B020 - the last one is used
        pass
    return answer(ops, x)


def states(ops: Ops, x: Value, branches: Sequence[Branch]) -> Iterator[tuple[Branch, Value]]:
    """The residual stream after each branch, [B, T, D].

    With early pooling it is [B, 1, D] from the last attention block on. After n rows are
    mixed, B/n replaces B.

    Args:
        ops: the operators.
        x: the embeddings.
        branches: the branches to run.
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
    if mux:  # no remaining branch runs on mixed rows
        yield Branch(len(e.layers) - 1, "ffn"), ops.mix(x)


def inner(ops: Ops, branch: Branch, x: Value, *, narrow: bool = False) -> Value:
    """The units of a branch, which are the input of its output map.

    Args:
        ops: the operators.
        branch: the branch.
        x: the residual stream, [B, T, D].
        narrow: compute only the first position.
    """
    family = family_of(ops.encoder)
    x = family.prepare(ops, branch, x)
    rows = ops.first(x) if narrow else x
    return ops.gate(branch, family.inner(ops, branch, x, rows))


def finish(ops: Ops, branch: Branch, y: Value) -> Value:
    """Apply the norm after a branch, if the family has one there."""
    return family_of(ops.encoder).finish(ops, branch, y)


def answer(ops: Ops, x: Value) -> Value:
    """Logits of every row from the residual stream after the last branch, [B, T, D]."""
    family, first = family_of(ops.encoder), ops.encoder.reads_first
    x = taken_apart(ops, ops.pool(x) if first else x)
    if first:
        return head(ops, x)
    return head(ops, ops.pool(x)) if ops.encoder.sentence else family.pooled_head(ops, x)


def taken_apart(ops: Ops, x: Value) -> Value:
    """The last states of every single row, after the final norm: [B, ..., D]."""
    x = family_of(ops.encoder).final(ops, x)
    return ops.unmix(x) if ops.encoder.mux else x
