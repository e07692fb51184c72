"""What a family is: one file that describes an architecture.

It reads a Hugging Face config into sizes, names the tensors of a checkpoint, lists its weights
with their axes, declares its embeddings, and writes branches and head over `Ops`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from prumux.optimizer.model.axes import HIDDEN, Weight, fixed, linear
from prumux.optimizer.model.ops import Embeddings, Ops, Value
from prumux.optimizer.model.sizes import Branch, Encoder

Config = Mapping[str, Any]


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
    """Whether the norm stands before the branch, so that the stream itself has none."""

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
        """What the output map of a branch reads.

        Args:
            ops: the reading.
            branch: which one.
            x: input of the branch at all positions, [B, T, D].
            rows: the positions to compute, [B, T, D] or [B, 1, D].
        """

    def prepare(self, ops: Ops, branch: Branch, x: Value) -> Value:
        """The norm before a branch; none unless a family says so."""
        del ops, branch
        return x

    def finish(self, ops: Ops, branch: Branch, y: Value) -> Value:
        """The norm after the residual sum; none unless a family says so."""
        del ops, branch
        return y

    def final_weights(self, e: Encoder) -> tuple[Weight, ...]:
        """The weights of `final`."""
        del e
        return ()

    def final(self, ops: Ops, x: Value) -> Value:
        """The norm after the last layer; none unless a family says so."""
        del ops
        return x

    def final_norm(self, e: Encoder, last: Branch | None) -> str:
        """The prefix of the norm whose output the head reads; `last` is the last branch."""
        del e
        return f"{last.name}.norm" if last else "embeddings.norm"

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
