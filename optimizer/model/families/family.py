"""The base class of families. A family is one file that describes an architecture.

A family converts a Hugging Face config to sizes, names the tensors of a checkpoint, and lists
the weights with their axes. It also defines embeddings, branches and head with `Ops`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from prumux.optimizer.model.axes import HIDDEN, Weight, fixed, linear, norm
from prumux.optimizer.model.ops import Embeddings, Ops, Value
from prumux.optimizer.model.sizes import Branch, Encoder

Config = Mapping[str, Any]
FINAL_NORM = "final.norm"


@dataclass(frozen=True)
class Part:
    """Part number `index` of a tensor that is split into `of` equal parts along axis 0."""

    tensor: str
    index: int
    of: int


class Family(ABC):
    """An architecture. A family has no state: methods take the sizes as an `Encoder`."""

    model_types: ClassVar[tuple[str, ...]]
    """The `model_type`s of the family's configs. The first one names the family."""
    pre_norm: ClassVar[bool] = False
    """True if norms come before the branches, with a further `final.norm` before the head."""
    norm_bias: ClassVar[bool] = True
    """True if norms have a shift."""
    norm_centred: ClassVar[bool] = True
    """True if norms subtract the mean (LayerNorm), False if they do not (RMSNorm)."""
    runs_empty: ClassVar[bool] = True
    """True if ONNX Runtime can run the graph on a batch without rows."""
    repeats: ClassVar[bool] = False
    """True if all layers start as copies of one layer. Graphs store equal weights once."""

    @abstractmethod
    def sizes(self, config: Config) -> Encoder:
        """The sizes in a config, with one label and the head for one answer per row.

        Raises:
            ModelError: a size is missing or wrong, or the variant is not supported.
        """

    @abstractmethod
    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """Maps prumux's module names to the module names of checkpoints.

        Names do not include `.weight` and `.bias`. `{i}` is the index of the layer.
        """

    @abstractmethod
    def embeddings(self, e: Encoder) -> Embeddings:
        """The embeddings: lookups, weights, norm and linear map."""

    @abstractmethod
    def branch_weights(self, e: Encoder, branch: Branch) -> tuple[Weight, ...]:
        """The weights of one branch."""

    @abstractmethod
    def inner(self, ops: Ops, branch: Branch, x: Value, rows: Value) -> Value:
        """The units of a branch, which are the input of its output map.

        Args:
            ops: the operators.
            branch: the branch.
            x: input of the branch at all positions, [B, T, D].
            rows: input at the positions to compute, [B, T, D] or [B, 1, D].
        """

    def has_norm(self, branch: Branch) -> bool:
        """True if a branch has its own norm. Default: every branch has one."""
        del branch
        return True

    def prepare(self, ops: Ops, branch: Branch, x: Value) -> Value:
        """Apply the norm before a branch, if `pre_norm`."""
        return self._norm(ops, branch, x) if self.pre_norm else x

    def finish(self, ops: Ops, branch: Branch, y: Value) -> Value:
        """Apply the norm after the residual sum, unless `pre_norm`."""
        return y if self.pre_norm else self._norm(ops, branch, y)

    def final(self, ops: Ops, x: Value) -> Value:
        """Apply the norm after the last layer, if `pre_norm`."""
        return ops.norm(FINAL_NORM, x, centred=self.norm_centred) if self.pre_norm else x

    def final_weights(self) -> tuple[Weight, ...]:
        """The weights of `final`."""
        return norm(FINAL_NORM, HIDDEN, bias=self.norm_bias) if self.pre_norm else ()

    def norm_weights(self, branch: Branch) -> tuple[Weight, ...]:
        """The weights of a branch's norm."""
        if not self.has_norm(branch):
            return ()
        return norm(f"{branch.name}.norm", HIDDEN, branch.index, bias=self.norm_bias)

    def read_norm(self, last: Branch | None) -> str:
        """The prefix of the norm before the head; `last` is the last branch."""
        if self.pre_norm:
            return FINAL_NORM
        return f"{last.name}.norm" if last else "embeddings.norm"

    span_map: ClassVar[str] = "qa_outputs"
    """Name of the last linear map in Hugging Face's question answering models."""

    def for_every_position(self, e: Encoder) -> Encoder:
        """The sizes for one answer per position. Default: the head has one linear map."""
        return replace(e, head="linear", pooling="all")

    def head_weights(self, e: Encoder) -> tuple[Weight, ...]:
        """The weights of the head's one or two linear maps."""
        dense = () if e.head == "linear" else linear("head.dense", HIDDEN, HIDDEN)
        return (*dense, *linear("head.output", fixed(e.labels), HIDDEN))

    def head(self, ops: Ops, x: Value) -> Value:
        """Logits from pooled states: [..., D] -> [..., C]."""
        if ops.encoder.head != "linear":
            x = ops.activation(ops.encoder.head, ops.linear("head.dense", x))
        return ops.linear("head.output", x)

    def pooled_head(self, ops: Ops, x: Value) -> Value:
        """Logits from the states of all positions: [B, T, D] -> [B, C] or [B, T, C]."""
        return self.head(ops, ops.pool(x))

    def _norm(self, ops: Ops, branch: Branch, x: Value) -> Value:
        if not self.has_norm(branch):
            return x
        return ops.norm(f"{branch.name}.norm", x, centred=self.norm_centred)
