"""Compose the graphs of a cascade's two stages into one graph of standard operators.

    first.logits [B, C]                        the first stage, quantised or fused before
    margin [B] = TopK(first.logits, 2)         difference of the two best logits
    rows [K] = NonZero(margin < threshold)     or TopK of the smallest margins if K is bounded
    second.* = Gather(inputs, rows)            the second stage on these rows, K = 0 included
    logits = ScatterND(first.logits, rows, second.logits)

Each stage was quantised separately before this step. The graph has no `If` node, because ONNX
Runtime's quantiser skips subgraphs. Constants with the same bytes are stored once. So both
stages share embedding tables that neither pruning nor training has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prumux.optimizer.base.errors import VerifyError
from prumux.optimizer.model.model import SecondStage
from prumux.optimizer.model.row_groups import PARTS, parts

from .graph import AXES, OUTPUT

FIRST, SECOND = "first.", "second."
CASCADE = "prumux.cascade"
"""Metadata key of a graph: describes the second stage and the rule to defer rows."""
DEFERRED = "deferred"
"""The second output: bool [batch_size], True if the second stage has answered the row."""


def compose(
    first: onnx.ModelProto, second: onnx.ModelProto, stage: SecondStage
) -> onnx.ModelProto:
    """Build the graph of a cascade.

    The graph has the inputs of both stages. Outputs are `logits`, as in a single stage, and
    `deferred`.

    Args:
        first: the first stage, which is not changed. The result has its metadata.
        second: the second stage, with the same inputs and labels.
        stage: threshold, and largest share of rows to defer.

    Raises:
        VerifyError: the stages' inputs differ.
    """
    inputs = [x.name for x in first.graph.input]
    if sorted(inputs) != sorted(x.name for x in second.graph.input):
        raise VerifyError("the stages of a cascade take different inputs")
    rule = _Rule(stage, inputs)
    one, two = _renamed(first, FIRST, inputs), _renamed(second, SECOND, [])
    nodes = [*one.node, *rule.choose(), *two.node, *rule.scatter()]
    constants = [*one.initializer, *two.initializer, *rule.constants]
    kept, renamed = _shared(constants)
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    labels = first.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    outputs = [
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, (AXES[0], labels)),
        helper.make_tensor_value_info(DEFERRED, TensorProto.BOOL, AXES[:1]),
    ]
    graph = helper.make_graph(nodes, "cascade", list(one.input), outputs, kept)
    opsets = _opsets(first, second)
    made = helper.make_model(
        graph,
        producer_name=first.producer_name,
        opset_imports=opsets,
        ir_version=max(first.ir_version, second.ir_version),
        doc_string=first.doc_string,
    )
    facts = {x.key: x.value for x in first.metadata_props}
    helper.set_model_props(made, {**facts, CASCADE: str(stage)})
    return made


class _Rule:
    """Writes the nodes between the two stages, and those after both."""

    def __init__(self, stage: SecondStage, inputs: list[str]) -> None:
        self.stage, self.inputs = stage, inputs
        self.constants: list[onnx.TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []

    def choose(self) -> list[onnx.NodeProto]:
        """Write nodes for the margins, the rows to defer, and the second stage's inputs."""
        self._nodes = []
        logits = f"{FIRST}{OUTPUT}"
        best = "cascade.best"
        two = self._ints("cascade.two", 2)
        self._node("TopK", [logits, two], [best, f"{best}.index"], axis=-1)
        top = self._op("Gather", "cascade.top", best, self._int("cascade.0", 0), axis=1)
        next_ = self._op("Gather", "cascade.next", best, self._int("cascade.1", 1), axis=1)
        margin = self._op("Sub", "cascade.margin", top, next_)
        limit = self._constant("cascade.threshold", np.array(self.stage.threshold, np.float32))
        below = self._op("Less", "cascade.below", margin, limit)
        rows = self._rows(margin, below)
        for name in self.inputs:
            self._op("Gather", f"{SECOND}{name}", name, rows, axis=0)
        return self._nodes

    def _rows(self, margin: str, below: str) -> str:
        """Indices of the rows to defer, int64 [K]."""
        last = self._ints("cascade.last", -1)
        if self.stage.max_share == 1:
            found = self._op("NonZero", "cascade.found", below)
            return self._op("Reshape", "cascade.rows", found, last)
        count = self._op("Cast", "cascade.each", below, to=TensorProto.INT64)
        count = self._op("ReduceSum", "cascade.count", count, keepdims=1)
        shape = self._op("Shape", "cascade.shape", margin)
        share = self._ints("cascade.share", parts(self.stage.max_share))
        most = self._op("Mul", "cascade.most", shape, share)
        most = self._op("Add", "cascade.up", most, self._ints("cascade.less", PARTS - 1))
        most = self._op("Div", "cascade.limit", most, self._ints("cascade.parts", PARTS))
        count = self._op("Min", "cascade.rows.count", count, most)
        least = self._constant("cascade.infinite", np.array(np.inf, np.float32))
        masked = self._op("Where", "cascade.masked", below, margin, least)
        outputs = ["cascade.smallest", "cascade.rows"]
        self._node("TopK", [masked, count], outputs, axis=0, largest=0)
        return outputs[1]

    def scatter(self) -> list[onnx.NodeProto]:
        """Write nodes that join both stages' answers, and the mask of the deferred rows."""
        self._nodes = []
        where = self._op("Unsqueeze", "cascade.where", "cascade.rows", self._ints("axis", 1))
        self._op("ScatterND", OUTPUT, f"{FIRST}{OUTPUT}", where, f"{SECOND}{OUTPUT}")
        if self.stage.max_share == 1:
            self._op("Identity", DEFERRED, "cascade.below")
            return self._nodes
        none = self._op("Xor", "cascade.none", "cascade.below", "cascade.below")
        all_ = self._op("Equal", "cascade.all", "cascade.rows", "cascade.rows")
        self._op("ScatterND", DEFERRED, none, where, all_)
        return self._nodes

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **more: Any) -> None:
        made = helper.make_node(kind, inputs, outputs, name=outputs[0], **more)
        self._nodes.append(made)

    def _op(self, kind: str, name: str, *inputs: str, **more: Any) -> str:
        self._node(kind, list(inputs), [name], **more)
        return name

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _ints(self, name: str, value: int) -> str:
        return self._constant(name, np.array([value], np.int64))

    def _int(self, name: str, value: int) -> str:
        return self._constant(name, np.array(value, np.int64))


def _renamed(proto: onnx.ModelProto, prefix: str, keep: list[str]) -> onnx.GraphProto:
    """Copy the graph with a prefix before all names except those in `keep`."""
    graph = onnx.GraphProto()
    graph.CopyFrom(proto.graph)

    def name(given: str) -> str:
        return given if not given or given in keep else f"{prefix}{given}"

    for node in graph.node:
        node.name = name(node.name)
        for names in (node.input, node.output):
            for i, given in enumerate(names):
                names[i] = name(given)
    for tensor in graph.initializer:
        tensor.name = name(tensor.name)
    return graph


def _shared(
    constants: Iterable[onnx.TensorProto],
) -> tuple[list[onnx.TensorProto], dict[str, str]]:
    """Remove equal constants; also return the kept constant's name for each removed one."""
    kept: dict[bytes, onnx.TensorProto] = {}
    renamed: dict[str, str] = {}
    for tensor in constants:
        about = f"{tensor.data_type}{tuple(tensor.dims)}".encode()
        data = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        first = kept.setdefault(hashlib.sha256(about + data).digest(), tensor)
        if first is not tensor:
            renamed[tensor.name] = first.name
    return list(kept.values()), renamed


def _opsets(*protos: onnx.ModelProto) -> list[onnx.OperatorSetIdProto]:
    """The operator sets of all graphs, each in the highest version that a graph uses."""
    found: dict[str, int] = {}
    for proto in protos:
        for x in proto.opset_import:
            found[x.domain] = max(x.version, found.get(x.domain, 0))
    return [helper.make_opsetid(domain, version) for domain, version in found.items()]
