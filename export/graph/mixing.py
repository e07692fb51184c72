"""Mixing rows before a layer, and taking them apart before the head."""

from __future__ import annotations

from prumux.optimizer.model.ir import Encoder

from .builder import INPUTS, Tape, activate, attention_bias, close
from .embedding import embed_slot


def mix(tape: Tape, e: Encoder, x: str) -> tuple[str, str]:
    """Mixed rows [B/n, T, D] and their attention mask; without `x`, of the embeddings."""
    n = e.slots
    masks = _masks(tape, n)
    together = tape.op("Max", "mux.mask", *masks)
    real = []
    for i, mask in enumerate(masks):
        wide = tape.op("Unsqueeze", f"mux.{i}.wide", mask, tape.integers(2))
        if e.mux and e.mux.at > e.narrow_from:  # one position is left, and it is real
            wide = tape.first(f"mux.{i}.first", wide)
        real.append(tape.op("Cast", f"mux.{i}.real", wide, to=tape.element))
    total = tape.op("Max", "mux.members", tape.op("Sum", "mux.real", *real), tape.number(1.0))
    parts = []
    for i in range(n):
        share = tape.op("Div", f"mux.{i}.share", real[i], total)
        row = _keyed(tape, e, x, i)
        parts.append(tape.op("Mul", f"mux.{i}", row, share))
    return tape.op("Sum", "mux", *parts), attention_bias(tape, together)


def _masks(tape: Tape, n: int) -> list[str]:
    """The attention masks of each slot's rows, [B/n, T].

    They are not sliced, as rows are, but reshaped, so that a number of rows which is no
    multiple of n is an error; slices of unequal size would give a wrong number of answers.
    """
    turned = tape.op("Transpose", "mux.mask.turned", INPUTS[1], perm=[1, 0])
    name = f"rows_must_be_a_multiple_of_{n}"  # what the engine names when it refuses
    groups = tape.op("Reshape", name, turned, tape.integers(0, -1, n))
    slots = tape.op("Transpose", "mux.mask.slots", groups, perm=[2, 1, 0])
    return [
        tape.op("Gather", f"mux.{i}.mask", slots, tape.integer(i), axis=0) for i in range(n)
    ]


def _keyed(tape: Tape, e: Encoder, x: str, i: int) -> str:
    """The rows of slot i times its key, [B/n, T, D]."""
    at, key = f"mux.{i}", tape.weights["mux.keys"][i]
    if not x:
        return embed_slot(tape, e, i, key)
    part = tape.slot(f"{at}.rows", x, i, e.slots)
    return tape.op("Mul", f"{at}.keyed", part, tape.floats(f"{at}.key", key))


def demux(tape: Tape, e: Encoder, x: str) -> str:
    """[B/n, D] to [B, D], or [B/n, T, D] to [B/n, n, T, D]."""
    assert e.mux is not None
    x = tape.op("Unsqueeze", "demux.slots", x, tape.integers(1))
    shape = (e.slots, e.hidden) if e.pooled else (e.slots, 1, e.hidden)
    scale, shift = (
        tape.floats(name, tape.weights[name].reshape(shape))
        for name in ("demux.scale", "demux.shift")
    )
    x = tape.op("Mul", "demux.scaled", x, scale)
    x = tape.op("Add", "demux.shifted", x, shift)
    if e.pooled:
        x = tape.op("Reshape", "demux.rows", x, tape.integers(-1, e.hidden))
    for i in range(e.mux.demux):
        at = f"demux.{i}"
        inner = activate(tape, "gelu", at, tape.linear(f"{at}.up", x))
        x = close(tape, e, at, tape.linear(f"{at}.down", inner), x)
    return x
