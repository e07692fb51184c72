"""The base of families. A family is one file that describes an architecture.

It reads a Hugging Face config into sizes, names the tensors of a checkpoint, lists its weights
with their axes, declares its embeddings, and writes branches and head over `Ops`.
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
    """A weight that is one of several equal parts of a tensor, along its first axis."""

    tensor: str
    index: int
    of: int


class Family(ABC):
    """An architecture. It has no state: sizes come as an `Encoder`."""

    model_types: ClassVar[tuple[str, ...]]
    """The `model_type`s of configs that it reads; the first names the family."""
    pre_norm: ClassVar[bool] = False
    """Whether norms stand before the branches, and one, `final.norm`, before the head."""
    norm_bias: ClassVar[bool] = True
    """Whether norms have a shift."""
    norm_centred: ClassVar[bool] = True
    """Whether norms take out the mean: LayerNorm, or else RMSNorm."""
    runs_empty: ClassVar[bool] = True
    """Whether ONNX Runtime runs the graph on a batch without rows."""
    repeats: ClassVar[bool] = False
    """Whether layers begin as copies of one; a graph then stores equal weights once."""

    @abstractmethod
    def sizes(self, config: Config) -> Encoder:
        """The sizes in a config, with one label and the head for one answer a row.

        Raises:
            ModelError: a size is missing, wrong, or of a variant that is not supported.
        """

    @abstractmethod
    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """Our name of every module -> the checkpoint's; `{i}` stands for the layer.

        Names are without `.weight` and `.bias`.
        """

    @abstractmethod
    def embeddings(self, e: Encoder) -> Embeddings:
        """The declared embeddings."""

    @abstractmethod
    def branch_weights(self, e: Encoder, branch: Branch) -> tuple[Weight, ...]:
        """The weights of one branch."""

    @abstractmethod
    def inner(self, ops: Ops, branch: Branch, x: Value, rows: Value) -> Value:
        """The units of a branch, which its output map reads.

        Args:
            ops: the reading.
            branch: which one.
            x: input of the branch at all positions, [B, T, D].
            rows: the positions to compute, [B, T, D] or [B, 1, D].
        """

    def has_norm(self, branch: Branch) -> bool:
        """Whether a branch has a norm of its own; all have unless a family says so."""
        del branch
        return True

    def prepare(self, ops: Ops, branch: Branch, x: Value) -> Value:
        """The norm before a branch, of a family that has it there."""
        return self._norm(ops, branch, x) if self.pre_norm else x

    def finish(self, ops: Ops, branch: Branch, y: Value) -> Value:
        """The norm after the residual sum, of a family that has it there."""
        return y if self.pre_norm else self._norm(ops, branch, y)

    def final(self, ops: Ops, x: Value) -> Value:
        """The norm after the last layer, where norms stand before the branches."""
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
        """The prefix of the norm whose output the head reads; `last` is the last branch."""
        if self.pre_norm:
            return FINAL_NORM
        return f"{last.name}.norm" if last else "embeddings.norm"

    span_map: ClassVar[str] = "qa_outputs"
    """Name of the last map in Hugging Face's models that find spans."""

    def for_every_position(self, e: Encoder) -> Encoder:
        """The sizes where every position has an answer: here the head is one map."""
        return replace(e, head="linear", pooling="all")

    def head_weights(self, e: Encoder) -> tuple[Weight, ...]:
        """The weights of the head: two maps, or one."""
        dense = () if e.head == "linear" else linear("head.dense", HIDDEN, HIDDEN)
        return (*dense, *linear("head.output", fixed(e.labels), HIDDEN))

    def head(self, ops: Ops, x: Value) -> Value:
        """Logits of pooled states: [..., D] -> [..., C]."""
        if ops.encoder.head != "linear":
            x = ops.activation(ops.encoder.head, ops.linear("head.dense", x))
        return ops.linear("head.output", x)

    def pooled_head(self, ops: Ops, x: Value) -> Value:
        """Logits of the states of all positions: [B, T, D] -> [B, C] or [B, T, C]."""
        return self.head(ops, ops.pool(x))

    def _norm(self, ops: Ops, branch: Branch, x: Value) -> Value:
        if not self.has_norm(branch):
            return x
        return ops.norm(f"{branch.name}.norm", x, centred=self.norm_centred)
