"""Writes ONNX nodes that compute a family's embeddings, for all rows or for one slot.

A slot is a row's place in a multiplexed group.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import TensorProto
from torch import Tensor

from prumux.optimizer.model.families.bag import PRIME
from prumux.optimizer.model.families.registry import family_of
from prumux.optimizer.model.ops import Lookup, Source
from prumux.optimizer.model.sizes import Encoder

from .builder import INPUTS, GraphBuilder

IDS, _, TOKEN_TYPES = INPUTS


def look_up(b: GraphBuilder, e: Encoder, pick: Callable[[str], str] = str) -> str:
    """Write the embeddings of all rows, [B, T, D].

    Args:
        b: the builder to write to.
        e: the sizes.
        pick: selects the indices to look up, from [B, T] or [1, T]. By default all.
    """
    declared = family_of(e).embeddings(e)
    x = ""
    for lookup in declared.lookups:
        table = b.weight(f"{lookup.table}.weight")
        y = b.op("Gather", lookup.table, table, pick(_index(b, e, lookup.source)))
        x = b.op("Add", f"{lookup.table}.sum", x, y) if x else y
    if declared.norm:
        x = b.norm(declared.norm, x, e.norm_eps)
    return b.linear(declared.project, x) if declared.project else x


def _index(b: GraphBuilder, e: Encoder, source: Source) -> str:
    """Index of each token's row in a table, [B, T] or [1, T]."""
    match source:
        case "ids":
            return IDS
        case "token_types":
            return TOKEN_TYPES
        case "positions":
            return _positions(b, e, IDS, "embeddings")
        case "segments":
            later = b.op("Mul", "embeddings.later", TOKEN_TYPES, b.integer(e.vocab))
            return b.op("Add", "embeddings.segment", later, IDS)
        case "pairs":
            return _pairs(b, e)


def _pairs(b: GraphBuilder, e: Encoder) -> str:
    """Bucket of every token and its predecessor, see `torch_ops.pair_ids`.

    A graph for TensorRT computes the remainder by a division.
    """
    at, buckets = "embeddings.pairs", b.integer(int(e.number("buckets")))
    zero, one, last = b.integers(0), b.integers(1), b.integers(-1)
    first = b.op("Slice", f"{at}.first", IDS, zero, one, one)
    pad = b.op("Mul", f"{at}.none", first, b.integer(0))
    pad = b.op("Add", f"{at}.pad", pad, b.integer(e.pad_id))
    before = b.op("Slice", f"{at}.inner", IDS, zero, last, one)
    before = b.op("Concat", f"{at}.before", pad, before, axis=1)
    hashed = b.op("Mul", f"{at}.product", before, b.integer(PRIME))
    hashed = b.op("Add", f"{at}.hash", hashed, IDS)
    if not b.portable:
        return b.op("Mod", at, hashed, buckets)
    whole = b.op("Div", f"{at}.quotient", hashed, buckets)
    whole = b.op("Mul", f"{at}.whole", whole, buckets)
    return b.op("Sub", at, hashed, whole)


def look_up_slot(
    b: GraphBuilder, e: Encoder, i: int, key: Tensor, pick: Callable[[str], str] = str
) -> str:
    """Write the embeddings of slot i's rows times its key, [B/n, T, D], in few steps.

    Pruning layers does not make embeddings cheaper, so few steps matter. One lookup gives the
    sum of position and token type embeddings, and the key is folded into the norm's scale and
    shift. `pick` is as in `look_up`.
    """
    declared, at = family_of(e).embeddings(e), f"mux.{i}.embeddings"
    ids = b.slot(f"{at}.ids", IDS, i, e.slots)
    words = next(x for x in declared.lookups if x.source == "ids")
    x = b.op("Gather", f"{at}.word", b.weight(f"{words.table}.weight"), pick(ids))
    places: dict[Source, Lookup] = {x.source: x for x in declared.lookups if x.source != "ids"}
    if places:
        x = b.op("Add", f"{at}.sum", x, _placed(b, e, places, i, ids, pick))
    if declared.norm and not declared.project:
        parts = (b.weights.get(f"{declared.norm}.{kind}") for kind in ("weight", "bias"))
        scale, shift = (None if x is None else x * key for x in parts)
        assert scale is not None
        return b.normalised(f"{at}.norm", at, x, scale, shift, eps=e.norm_eps)
    if declared.norm:
        x = b.norm(declared.norm, x, e.norm_eps, f"{at}.norm")
    if declared.project:
        x = b.linear(declared.project, x, f"{at}.project")
    return b.op("Mul", f"{at}.keyed", x, b.floats(f"{at}.key", key))


def _placed(  # noqa: PLR0917
    b: GraphBuilder,
    e: Encoder,
    places: dict[Source, Lookup],
    i: int,
    ids: str,
    pick: Callable[[str], str],
) -> str:
    """Sum of position and token type embeddings of slot i, from a table of these sums."""
    at = f"mux.{i}.embeddings"
    if "positions" not in places:
        types = b.slot(f"{at}.types", TOKEN_TYPES, i, e.slots)
        name = f"{places['token_types'].table}.weight"
        return b.op("Gather", f"{at}.placed", b.weight(name), pick(types))
    place = _positions(b, e, ids, at)
    table = b.weights[f"{places['positions'].table}.weight"]
    if "token_types" in places:
        kinds = b.weights[f"{places['token_types'].table}.weight"]
        table = (table[:, None] + kinds).flatten(0, 1)
        types = b.slot(f"{at}.types", TOKEN_TYPES, i, e.slots)
        first = b.op("Mul", f"{at}.first", place, b.integer(len(kinds)))
        place = b.op("Add", f"{at}.place", first, types)
    return b.op("Gather", f"{at}.placed", b.floats("embeddings.places", table), pick(place))


def _positions(b: GraphBuilder, e: Encoder, ids: str, prefix: str) -> str:
    """Indices of rows of the position table: [1, T], or [B, T] if they depend on padding."""
    at = f"{prefix}.positions"
    if e.positions_from == "padding":
        pad = b.op("Equal", f"{at}.pad", ids, b.integer(e.pad_id))
        real = b.op("Not", f"{at}.not_pad", pad)
        real = b.op("Cast", f"{at}.real", real, to=TensorProto.INT64)
        count = b.count(f"{at}.count", real, b.integer(1))
        count = b.op("Mul", f"{at}.counted", count, real)
        return b.op("Add", at, count, b.integer(e.pad_id))
    shape = b.op("Shape", f"{at}.shape", ids)
    length = b.op("Gather", f"{at}.length", shape, b.integer(1))
    row = b.op("Range", f"{at}.range", b.integer(0), length, b.integer(1))
    return b.op("Unsqueeze", at, row, b.integers(0))
