"""The embeddings of rows, and of the rows of one slot of a multiplexed graph."""

from __future__ import annotations

from onnx import TensorProto
from torch import Tensor

from prumux.optimizer.model.ir import Encoder

from .builder import INPUTS, Tape


def embed(tape: Tape, e: Encoder) -> str:
    """Embeddings of all rows, [B, T, D]."""
    at = "embeddings"
    x = tape.op("Gather", f"{at}.word", tape.weight(f"{at}.word.weight"), INPUTS[0])
    table = tape.weight(f"{at}.position.weight")
    position = tape.op("Gather", f"{at}.position", table, _positions(tape, e, INPUTS[0], at))
    x = tape.op("Add", f"{at}.word_position", x, position)
    if e.token_types:
        types = tape.weight(f"{at}.token_type.weight")
        x = tape.op(
            "Add", f"{at}.sum", x, tape.op("Gather", f"{at}.token_type", types, INPUTS[2])
        )
    x = tape.norm(f"{at}.norm", x, e.norm_eps)
    return tape.linear(f"{at}.project", x) if e.projected else x


def embed_slot(tape: Tape, e: Encoder, i: int, key: Tensor) -> str:
    """Embeddings of the rows of slot i times its key, [B/n, T, D], in few steps.

    This is what no pruning of layers makes cheaper, so position and token type are looked up
    as one, and the key is folded into the LayerNorm's scale and shift.
    """
    at = f"mux.{i}.embeddings"
    ids = tape.slot(f"{at}.ids", INPUTS[0], i, e.slots)
    x = tape.op("Gather", f"{at}.word", tape.weight("embeddings.word.weight"), ids)
    x = tape.op("Add", f"{at}.sum", x, _placed(tape, e, i, ids))
    if e.projected:
        x = tape.norm("embeddings.norm", x, e.norm_eps, f"{at}.norm")
        x = tape.linear("embeddings.project", x, f"{at}.project")
        return tape.op("Mul", f"{at}.keyed", x, tape.floats(f"{at}.key", key))
    keyed = (tape.weights[f"embeddings.norm.{kind}"] * key for kind in ("weight", "bias"))
    return tape.normalised(f"{at}.norm", at, x, *keyed, eps=e.norm_eps)


def _placed(tape: Tape, e: Encoder, i: int, ids: str) -> str:
    """Position and token type embeddings of slot i, looked up in the table of their sums."""
    at = f"mux.{i}.embeddings"
    place = _positions(tape, e, ids, at)
    table = tape.weights["embeddings.position.weight"]
    if e.token_types:
        kinds = tape.weights["embeddings.token_type.weight"]
        table = (table[:, None] + kinds).flatten(0, 1)
        types = tape.slot(f"{at}.types", INPUTS[2], i, e.slots)
        first = tape.op("Mul", f"{at}.first", place, tape.integer(e.token_types))
        place = tape.op("Add", f"{at}.place", first, types)
    return tape.op("Gather", f"{at}.placed", tape.floats("embeddings.places", table), place)


def _positions(tape: Tape, e: Encoder, ids: str, prefix: str) -> str:
    """Rows of the position table: [1, T], or [B, T] where padding counts."""
    at = f"{prefix}.positions"
    if e.positions_from == "padding":
        pad = tape.op("Equal", f"{at}.pad", ids, tape.integer(e.pad_id))
        real = tape.op("Not", f"{at}.not_pad", pad)
        real = tape.op("Cast", f"{at}.real", real, to=TensorProto.INT64)
        count = tape.count(f"{at}.count", real, tape.integer(1))
        count = tape.op("Mul", f"{at}.counted", count, real)
        return tape.op("Add", at, count, tape.integer(e.pad_id))
    shape = tape.op("Shape", f"{at}.shape", ids)
    length = tape.op("Gather", f"{at}.length", shape, tape.integer(1))
    row = tape.op("Range", f"{at}.range", tape.integer(0), length, tape.integer(1))
    return tape.op("Unsqueeze", at, row, tape.integers(0))
