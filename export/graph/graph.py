"""Write a `Model` as a plain ONNX graph, from its sizes and weights, without tracing.

Patterns have the form that ONNX Runtime's transformer fusions match: constant head counts, the
two Unsqueezes of the mask, and the order of the embedding sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

from prumux.optimizer.base.errors import VerifyError
from prumux.optimizer.model import forward
from prumux.optimizer.model.families.registry import family_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder

from .builder import INPUTS, GraphBuilder, Precision
from .onnx_ops import OnnxOps
from .ragged import RaggedOps

OUTPUT = "logits"
VECTORS = "sentence_embedding"
STATES = "last_hidden_state"
"""Name of the second output of embedding models, for libraries that pool states."""
SLOTS = "prumux.slots"
"""Metadata key: the number of rows that the graph mixes into one."""
PRECISION = "prumux.precision"
"""Metadata key: the type in which products are computed, unless it is float32."""
ORIGIN = "prumux.origin"
"""Metadata key: the digest of the given model."""
LAYOUT = "prumux.layout"
"""Metadata key: `ragged` if only attention runs on padding."""
AXES = ("batch_size", "sequence_length")
LOW_OPSET = 20
"""The first ONNX opset with Gelu. fp16 and bf16 graphs need Gelu as one operator."""


def build(
    model: Model,
    opset: int = 17,
    precision: Precision = "fp32",
    *,
    portable: bool = False,
    ragged: bool = False,
    states: bool = False,
) -> onnx.ModelProto:
    """Build the graph of a model without masks: standard ONNX ops, dynamic batch and length.

    Inputs are `input_ids`, `attention_mask` and, if the model has token types,
    `token_type_ids`, all int64 [batch_size, sequence_length]. The outputs are float32:

    - `logits`, [batch_size, C], or [batch_size, sequence_length, C] for token tasks;
    - `sentence_embedding` in place of `logits`, for embedding models;
    - `start_logits` and `end_logits`, the columns of `logits`, for question answering, unless
      the graph is `portable`.

    The same model gives the same bytes. If n rows are mixed, batch_size must be a multiple of
    n. The metadata entry `prumux.slots` is n.

    In fp16 and bf16, all weights and float values have this type. Only the logits are cast, at
    the end. LayerNorm's statistics stay float32. To prevent overflow, attention is scaled
    before its product, and padding is hidden by half of the lowest number. The opset is raised
    to 20, the first opset with Gelu.

    Args:
        model: a model without masks.
        opset: version of the ONNX operators.
        precision: the type of weights and values.
        portable: True = use only types that TensorRT's parser documents for each operator.
            fp16 and bf16 graphs always use only these types.
        ragged: True = run all blocks except attention on real tokens only, see `ragged`.
        states: True = the fp32 graph of an embedding model also returns the states before
            pooling.

    Raises:
        VerifyError: masks are pending, or weights do not fit the sizes or the type.
    """
    model.verify()
    if model.stage == "masked":
        left, full = model.masks.sizes(model.encoder), model.encoder
        raise VerifyError(
            f"the model still carries masks: {full} would become {left}\n"
            "only a dense model can be exported; end the passes with `slice`"
        )
    e = model.encoder
    builder = GraphBuilder(model.weights, precision, portable)
    ops = (RaggedOps if ragged else OnnxOps)(e, builder)
    ops.result(forward.logits(ops, e.branches()), output_name(e))
    ints = [_value(name, TensorProto.INT64, AXES) for name in input_names(e)]
    axes = (*AXES[:1], e.labels) if e.pooled else (*AXES, e.labels)
    outputs = [_value(output_name(e), TensorProto.FLOAT, axes)]
    if not portable:
        for i, name in enumerate(model.task.outputs):
            builder.op("Gather", name, OUTPUT, builder.integer(i), axis=2)
            outputs.append(_value(name, TensorProto.FLOAT, AXES))
    if states and e.sentence and not builder.low:
        _rename(builder.nodes, ops.pooled, STATES)
        length = 1 if e.narrow_from < len(e.layers) else AXES[1]
        outputs.append(_value(STATES, TensorProto.FLOAT, (AXES[0], length, e.hidden)))
    graph = helper.make_graph(builder.nodes, "encoder", ints, outputs, builder.constants)
    if family_of(e).repeats:
        _store_once(graph)
    opsets = [helper.make_opsetid("", max(opset, LOW_OPSET) if builder.low else opset)]
    made = helper.make_model(
        graph,
        producer_name="prumux",
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        doc_string=str(e),
    )
    told = {ORIGIN: origin(model.source)} if origin(model.source) else {}
    if e.mux:
        told[SLOTS] = str(e.slots)
    if ragged:
        told[LAYOUT] = "ragged"
    if precision != "fp32":
        told[PRECISION] = precision
    helper.set_model_props(made, told)
    return made


def _store_once(graph: onnx.GraphProto) -> None:
    """Store equal constants once: all nodes read the first of them."""
    first: dict[tuple[Any, ...], str] = {}
    same: dict[str, str] = {}
    for x in graph.initializer:
        same[x.name] = first.setdefault((x.data_type, *x.dims, x.raw_data), x.name)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
    kept = [x for x in graph.initializer if same[x.name] == x.name]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def origin(source: Mapping[str, Any]) -> str:
    """The digest of the given model, from a model's source; empty if unknown."""
    return str(source.get("origin") or source.get("digest") or "")


def output_name(encoder: Encoder) -> str:
    """Name of the graph's first output."""
    return VECTORS if encoder.sentence else OUTPUT


def _rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Rename a value between nodes."""
    for node in nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def input_names(encoder: Encoder) -> tuple[str, ...]:
    """Names of the graph's inputs, in order."""
    return INPUTS if encoder.token_types else INPUTS[:2]


def _value(name: str, kind: int, axes: tuple[str | int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, axes)
