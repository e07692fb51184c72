"""A `Model` as a plain ONNX graph, written from its sizes and weights without tracing.

The shape of every pattern (constant head counts, the two Unsqueezes of the mask, the order of
the embedding sums) is what ONNX Runtime's transformer fusions look for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from prumux.optimizer.errors import VerifyError
from prumux.optimizer.ir import Encoder, Model

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "logits"
SLOTS = "prumux.slots"
"""Under this name the metadata of a graph say how many rows it mixes into one."""
AXES = ("batch_size", "sequence_length")


def build(model: Model, opset: int = 17) -> onnx.ModelProto:
    """The graph of a dense model: standard ONNX ops only, float32, dynamic batch and length.

    Inputs are `input_ids`, `attention_mask` and, where the model has them, `token_type_ids`,
    all int64 [batch_size, sequence_length]. The output is `logits`, float32 [batch_size, C],
    or [batch_size, sequence_length, C] for token tasks. The same model gives the same bytes.
    Where n rows are mixed, batch_size must be a multiple of n, and the graph's metadata say
    so: `prumux.slots`.

    Raises:
        VerifyError: masks are pending, or weights do not fit the sizes.
    """
    model.verify()
    if model.stage == "masked":
        left, full = model.masks.sizes(model.encoder), model.encoder
        raise VerifyError(
            f"the model still carries masks: {full} would become {left}\n"
            "only a dense model can be exported; end the passes with `slice`"
        )
    e = model.encoder
    tape = _Tape(model.weights)
    _network(tape, e)
    ints = [_value(name, TensorProto.INT64, AXES) for name in input_names(e)]
    axes = (*AXES[:1], e.labels) if e.pooled else (*AXES, e.labels)
    output = _value(OUTPUT, TensorProto.FLOAT, axes)
    graph = helper.make_graph(tape.nodes, "encoder", ints, [output], tape.constants)
    opsets = [helper.make_opsetid("", opset)]
    made = helper.make_model(
        graph,
        producer_name="prumux",
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        doc_string=str(e),
    )
    if e.mux:
        helper.set_model_props(made, {SLOTS: str(e.slots)})
    return made


def input_names(encoder: Encoder) -> tuple[str, ...]:
    """Names of the graph's inputs, in order."""
    return INPUTS if encoder.token_types else INPUTS[:2]


class _Tape:
    """Nodes and constants in the order in which they are written."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: set[str] = set()

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; its one output has the node's name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """An initializer, stored once a name."""
        if name not in self._known:
            self._known.add(name)
            self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(f"float.{value:.9g}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        """An int64 vector."""
        text = "x".join(map(str, values))
        return self.constant(f"int.{text}", np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """An int64 scalar."""
        return self.constant(f"index.{value}", np.array(value, np.int64))

    def weight(self, name: str) -> str:
        """A weight as it is."""
        return self.constant(name, self.weights[name].numpy())

    def linear(self, name: str, x: str, node: str = "") -> str:
        """[..., in] -> [..., out]; the node has the name of its weights unless told."""
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].numpy().T)
        y = self.op("MatMul", f"{node or name}.matmul", x, weight)
        return self.op("Add", node or name, y, self.weight(f"{name}.bias"))

    def norm(self, name: str, x: str, eps: float, node: str = "") -> str:
        """LayerNorm over the last axis; named as `linear` is."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op(
            "LayerNormalization", node or name, x, weight, bias, axis=-1, epsilon=eps
        )

    def first(self, name: str, x: str) -> str:
        """The first position, kept as an axis."""
        zero, one = self.integers(0), self.integers(1)
        return self.op("Slice", name, x, zero, one, one)

    def slot(self, name: str, x: str, i: int, n: int) -> str:
        """Every n-th row from row i on."""
        ends = self.integers(i), self.integers(2**62), self.integers(0), self.integers(n)
        return self.op("Slice", name, x, *ends)


def _network(tape: _Tape, e: Encoder) -> None:
    last, mixed_at = e.last_attention, e.mux.at if e.mux else -1
    x = "" if mixed_at == 0 else _embed(tape, e)  # [B, T, D]
    mask = _mask(tape, INPUTS[1]) if last >= 0 and mixed_at != 0 else ""
    for i, layer in enumerate(e.layers):
        if i == mixed_at:
            x, mask = _mix(tape, e, x)  # [B/n, T, D]
        if layer.heads:
            x = _attention(tape, e, i, x, mask, narrow=e.pool_early and i == last)
        if layer.ffn:
            at = f"layers.{i}.ffn"
            inner = _activate(tape, e.activation, at, tape.linear(f"{at}.up", x))
            x = _close(tape, e, at, tape.linear(f"{at}.down", inner), x)
    if e.pooled:
        x = tape.op("Gather", "head.first", x, tape.integer(0), axis=1)  # [B, D]
    if e.mux:
        x = _demux(tape, e, x)
    if e.pooled:
        x = _activate(tape, e.head, "head", tape.linear("head.dense", x))
    tape.linear("head.output", x)
    if e.mux and not e.pooled:  # [B/n, n, T, C]
        shape = tape.op("Shape", "rows.shape", INPUTS[0])
        shape = tape.op("Concat", "rows.logits", shape, tape.integers(e.labels), axis=0)
        tape.op("Reshape", "rows", "head.output", shape)
    tape.nodes[-1].output[0] = OUTPUT


def _mix(tape: _Tape, e: Encoder, x: str) -> tuple[str, str]:
    """Mixed rows [B/n, T, D] and their attention mask; without `x`, of the embeddings."""
    n = e.slots
    masks = [tape.slot(f"mux.{i}.mask", INPUTS[1], i, n) for i in range(n)]
    together = tape.op("Max", "mux.mask", *masks)
    real = []
    for i, mask in enumerate(masks):
        wide = tape.op("Unsqueeze", f"mux.{i}.wide", mask, tape.integers(2))
        if e.mux and e.mux.at > e.narrow_from:  # one position is left, and it is real
            wide = tape.first(f"mux.{i}.first", wide)
        real.append(tape.op("Cast", f"mux.{i}.real", wide, to=TensorProto.FLOAT))
    total = tape.op("Max", "mux.members", tape.op("Sum", "mux.real", *real), tape.number(1.0))
    parts = []
    for i in range(n):
        share = tape.op("Div", f"mux.{i}.share", real[i], total)
        row = _keyed(tape, e, x, i)
        parts.append(tape.op("Mul", f"mux.{i}", row, share))
    return tape.op("Sum", "mux", *parts), _mask(tape, together)


def _keyed(tape: _Tape, e: Encoder, x: str, i: int) -> str:
    """The rows of slot i times its key; folded into the embedding's LayerNorm if it can be."""
    at, key = f"mux.{i}", tape.weights["mux.keys"][i]
    if x:
        part = tape.slot(f"{at}.rows", x, i, e.slots)
    elif e.projected:
        part = _embed(tape, e, _inputs_of(tape, e, i), f"{at}.")
    else:
        return _embed(tape, e, _inputs_of(tape, e, i), f"{at}.", key)
    return tape.op("Mul", f"{at}.keyed", part, tape.constant(f"{at}.key", key.numpy()))


def _inputs_of(tape: _Tape, e: Encoder, i: int) -> tuple[str, str]:
    """Ids and token types of slot i."""
    names = (INPUTS[0], INPUTS[2]) if e.token_types else (INPUTS[0],)
    found = [tape.slot(f"mux.{i}.{name}", name, i, e.slots) for name in names]
    return found[0], found[-1]


def _demux(tape: _Tape, e: Encoder, x: str) -> str:
    """[B/n, D] to [B, D], or [B/n, T, D] to [B/n, n, T, D]."""
    assert e.mux is not None
    x = tape.op("Unsqueeze", "demux.slots", x, tape.integers(1))
    shape = (e.slots, e.hidden) if e.pooled else (e.slots, 1, e.hidden)
    scale, shift = (
        tape.constant(name, tape.weights[name].numpy().reshape(shape))
        for name in ("demux.scale", "demux.shift")
    )
    x = tape.op("Mul", "demux.scaled", x, scale)
    x = tape.op("Add", "demux.shifted", x, shift)
    if e.pooled:
        x = tape.op("Reshape", "demux.rows", x, tape.integers(-1, e.hidden))
    for i in range(e.mux.demux):
        at = f"demux.{i}"
        inner = _activate(tape, "gelu", at, tape.linear(f"{at}.up", x))
        x = _close(tape, e, at, tape.linear(f"{at}.down", inner), x)
    return x


def _embed(
    tape: _Tape,
    e: Encoder,
    inputs: tuple[str, str] = (INPUTS[0], INPUTS[2]),
    prefix: str = "",
    key: Tensor | None = None,
) -> str:
    """Embeddings of rows, or of the rows of one slot, times its key."""
    at, (ids, types) = f"{prefix}embeddings", inputs
    x = tape.op("Gather", f"{at}.word", tape.weight("embeddings.word.weight"), ids)
    table = tape.weight("embeddings.position.weight")
    position = tape.op("Gather", f"{at}.position", table, _positions(tape, e, ids, at))
    x = tape.op("Add", f"{at}.word_position", x, position)
    if e.token_types:
        table = tape.weight("embeddings.token_type.weight")
        x = tape.op("Add", f"{at}.sum", x, tape.op("Gather", f"{at}.token_type", table, types))
    if key is None:
        x = tape.norm("embeddings.norm", x, e.norm_eps, f"{at}.norm")
        return tape.linear("embeddings.project", x, f"{at}.project") if e.projected else x
    weight, bias = (
        tape.constant(
            f"{at}.norm.{kind}", (tape.weights[f"embeddings.norm.{kind}"] * key).numpy()
        )
        for kind in ("weight", "bias")
    )
    return tape.op(
        "LayerNormalization", f"{at}.norm", x, weight, bias, axis=-1, epsilon=e.norm_eps
    )


def _positions(tape: _Tape, e: Encoder, ids: str, prefix: str) -> str:
    """Rows of the position table: [1, T], or [B, T] where padding counts."""
    at = f"{prefix}.positions"
    if e.positions_from == "padding":
        pad = tape.op("Equal", f"{at}.pad", ids, tape.integer(e.pad_id))
        real = tape.op("Not", f"{at}.not_pad", pad)
        real = tape.op("Cast", f"{at}.real", real, to=TensorProto.INT64)
        count = tape.op("CumSum", f"{at}.count", real, tape.integer(1))
        count = tape.op("Mul", f"{at}.counted", count, real)
        return tape.op("Add", at, count, tape.integer(e.pad_id))
    shape = tape.op("Shape", f"{at}.shape", ids)
    length = tape.op("Gather", f"{at}.length", shape, tape.integer(1))
    row = tape.op("Range", f"{at}.range", tape.integer(0), length, tape.integer(1))
    return tape.op("Unsqueeze", at, row, tape.integers(0))


def _mask(tape: _Tape, attention_mask: str) -> str:
    """0 at real positions and the lowest float at padding, [B, 1, 1, T]."""
    prefix = "" if attention_mask == INPUTS[1] else "mux."
    x = tape.op("Unsqueeze", f"{prefix}mask.heads", attention_mask, tape.integers(1))
    x = tape.op("Unsqueeze", f"{prefix}mask.queries", x, tape.integers(2))
    x = tape.op("Cast", f"{prefix}mask.float", x, to=TensorProto.FLOAT)
    x = tape.op("Sub", f"{prefix}mask.padding", tape.number(1.0), x)
    lowest = tape.number(float(np.finfo(np.float32).min))
    return tape.op("Mul", f"{prefix}mask.bias", x, lowest)


def _attention(tape: _Tape, e: Encoder, i: int, x: str, mask: str, *, narrow: bool) -> str:
    at, heads = f"layers.{i}.attention", e.layers[i].heads
    rows = tape.first(f"{at}.first", x) if narrow else x

    def split(part: str, source: str, perm: tuple[int, ...]) -> str:
        shape = tape.integers(0, 0, heads, e.head_dim)
        y = tape.op(
            "Reshape", f"{at}.{part}.split", tape.linear(f"{at}.{part}", source), shape
        )
        return tape.op("Transpose", f"{at}.{part}.heads", y, perm=perm)

    q = split("query", rows, (0, 2, 1, 3))  # [B, H, T, K]
    k = split("key", x, (0, 2, 3, 1))  # [B, H, K, T]
    v = split("value", x, (0, 2, 1, 3))
    scores = tape.op("MatMul", f"{at}.scores", q, k)
    scores = tape.op("Div", f"{at}.scaled", scores, tape.number(math.sqrt(e.head_dim)))
    scores = tape.op("Add", f"{at}.masked", scores, mask)
    share = tape.op("Softmax", f"{at}.share", scores, axis=-1)
    y = tape.op("MatMul", f"{at}.context", share, v)
    y = tape.op("Transpose", f"{at}.rows", y, perm=(0, 2, 1, 3))
    y = tape.op("Reshape", f"{at}.joined", y, tape.integers(0, 0, heads * e.head_dim))
    return _close(tape, e, at, tape.linear(f"{at}.output", y), rows)


def _close(tape: _Tape, e: Encoder, at: str, y: str, x: str) -> str:
    """Residual and LayerNorm of a block."""
    # y first: the fusion takes the first Add for the block, and ELECTRA's x is one as well.
    return tape.norm(f"{at}.norm", tape.op("Add", f"{at}.residual", y, x), e.norm_eps)


def _activate(tape: _Tape, kind: str, at: str, x: str) -> str:
    return _ACTIVATIONS[kind](tape, f"{at}.{kind}", x)


def _gelu(tape: _Tape, at: str, x: str) -> str:
    y = tape.op("Div", f"{at}.div", x, tape.number(math.sqrt(2)))
    y = tape.op("Add", f"{at}.add", tape.op("Erf", f"{at}.erf", y), tape.number(1.0))
    return tape.op("Mul", at, tape.op("Mul", f"{at}.mul", x, y), tape.number(0.5))


def _gelu_tanh(tape: _Tape, at: str, x: str) -> str:
    y = tape.op("Pow", f"{at}.cube", x, tape.number(3.0))
    y = tape.op("Mul", f"{at}.small", y, tape.number(0.044715))
    y = tape.op("Add", f"{at}.inner", x, y)
    y = tape.op("Mul", f"{at}.scaled", y, tape.number(math.sqrt(2 / math.pi)))
    y = tape.op("Add", f"{at}.add", tape.op("Tanh", f"{at}.tanh", y), tape.number(1.0))
    return tape.op("Mul", at, tape.op("Mul", f"{at}.half", x, tape.number(0.5)), y)


def _silu(tape: _Tape, at: str, x: str) -> str:
    return tape.op("Mul", at, x, tape.op("Sigmoid", f"{at}.sigmoid", x))


_ACTIVATIONS: dict[str, Callable[[_Tape, str, str], str]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu": lambda tape, at, x: tape.op("Relu", at, x),
    "tanh": lambda tape, at, x: tape.op("Tanh", at, x),
}


def _value(name: str, kind: int, axes: tuple[str | int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, axes)
