"""Sizes of an encoder. All values are frozen.

Axis letters used in shapes: B rows, T positions, D hidden, E embedding, H heads of a layer,
K head dimension, F FFN units of a layer, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
HeadKind = Literal["tanh", "relu", "gelu", "linear"]
Keys = Literal["learned", "fixed", "orthogonal"]
Pooling = Literal["first", "mean", "mean_sqrt", "all", "several"]
Pool = Literal["first", "max", "mean", "mean_sqrt", "weighted_mean", "last"]
HeadActivation = Literal["identity", "tanh", "relu", "gelu", "silu", "sigmoid"]
BranchKind = Literal["attention", "ffn"]
KINDS: tuple[BranchKind, ...] = ("attention", "ffn")
LIMIT_CONSTANT = 2**40
"""No constant of a model comes near it."""
Constant = float | int | str | bool | tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer. 0 means that the branch is gone, with its norm and biases."""

    heads: int
    ffn: int


@dataclass(frozen=True)
class Branch:
    """One residual branch: `attention` or `ffn` of layer `index`."""

    index: int
    kind: BranchKind

    @property
    def name(self) -> str:
        """The prefix of its weights."""
        return f"layers.{self.index}.{self.kind}"

    @property
    def output(self) -> str:
        """The prefix of the linear map that writes to the residual stream."""
        return f"{self.name}.{'output' if self.kind == 'attention' else 'down'}"


@dataclass(frozen=True)
class Multiplexing:
    """How n rows share one forward pass. No multiplexing is `None`, not n=1.

    Row number i of a batch goes into mixed row i // n, slot i % n.
    """

    n: int
    at: int = 0
    """The layer before which rows are mixed; the layers before it run on every row."""
    variant: Keys = "learned"
    """The kind of the keys that tell the slots apart."""
    demux: int = 1
    """Hidden layers of the demultiplexer."""


@dataclass(frozen=True)
class HeadStep:
    """A step after the pooling of a sentence embedding: a linear map or a normalisation."""

    kind: Literal["dense", "normalize"]
    out: int = 1
    """Outputs of a linear map."""
    bias: bool = True
    activation: HeadActivation = "identity"


@dataclass(frozen=True)
class SentenceHead:
    """The pools that make one vector of a row's states, side by side, then steps in order."""

    pools: tuple[Pool, ...] = ("mean",)
    steps: tuple[HeadStep, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """The sizes of an encoder with its head, and nothing else."""

    vocab: int
    positions: int
    """The longest input, or the rows of the position table where there is one."""
    token_types: int
    """0 where the model takes no `token_type_ids`."""
    embedding: int
    """Width of the embedding tables; a linear map follows where it differs from `hidden`."""
    hidden: int
    head_dim: int
    layers: tuple[Layer, ...]
    labels: int
    head: HeadKind = "tanh"
    """Activation between the two maps of the head; `linear` = the head is one map."""
    activation: Activation = "gelu"
    norm_eps: float = 1e-12
    pad_id: int = 0
    positions_from: Literal["index", "padding"] = "index"
    """`padding`: RoBERTa's rule, position = pad_id + number of non-pad ids so far."""
    projected: bool = False
    """Whether a linear map stands between the embedding and the first layer (ELECTRA)."""
    pool_early: bool = False
    """Whether the last attention block and all after it run at the first position only."""
    mux: Multiplexing | None = None
    """The mixing of rows; None = every row has a forward pass of its own."""
    pooling: Pooling = "first"
    """Positions that the head reads: the first, the mean of all, their sum over the root of
    their number, every one, or what the pools of `sentence` say."""
    family: str = "bert"
    """The architecture: a `model_type` of `prumux.optimizer.model.families`."""
    constants: tuple[tuple[str, Constant], ...] = ()
    """Facts that only this family has, such as the bases of rotary positions; by name."""
    sentence: SentenceHead | None = None
    """The head of a sentence embedding, in place of the family's; `labels` is its width."""

    @property
    def slots(self) -> int:
        """Rows that share a forward pass."""
        return self.mux.n if self.mux else 1

    @property
    def most_tokens(self) -> int:
        """Tokens that a row may have: RoBERTa's rule leaves some positions unused."""
        unused = self.pad_id + 1 if self.positions_from == "padding" else 0
        return self.positions - unused

    @property
    def pooled(self) -> bool:
        """Whether logits are [B, C], one answer a row, and not [B, T, C]."""
        return self.pooling != "all"

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The parts of all positions that the head reads, side by side."""
        if self.pooling == "several" and self.sentence is not None:
            return self.sentence.pools
        match self.pooling:
            case "mean" | "mean_sqrt" as pool:
                return (pool,)
            case _:
                return ("first",)

    @property
    def reads_first(self) -> bool:
        """Whether the head reads the first position only."""
        return self.pooling == "first"

    @property
    def last_attention(self) -> int:
        """Index of the last layer that still attends, -1 if none does."""
        return max((i for i, layer in enumerate(self.layers) if layer.heads), default=-1)

    @property
    def narrow_from(self) -> int:
        """First layer that runs at the first position only; past the last if none does."""
        early = self.pool_early and self.last_attention >= 0
        return self.last_attention if early else len(self.layers)

    def units(self, branch: Branch) -> int:
        """Heads or FFN units of a branch."""
        layer = self.layers[branch.index]
        return layer.heads if branch.kind == "attention" else layer.ffn

    def branches(self) -> list[Branch]:
        """The branches that are left, in order."""
        pairs = ((i, kind) for i in range(len(self.layers)) for kind in KINDS)
        return [b for b in (Branch(*pair) for pair in pairs) if self.units(b)]

    def constant(self, name: str) -> Constant:
        """One of the family's own facts."""
        return dict(self.constants)[name]

    def number(self, name: str) -> float:
        """One of the family's own facts that is a number.

        Raises:
            ValueError: it is none, in a damaged file.
        """
        found = self.constant(name)
        if isinstance(found, bool | str | tuple) or not abs(found) <= LIMIT_CONSTANT:
            raise ValueError(
                f"constant {name} is {found!r:.40}, not a number up to {LIMIT_CONSTANT}"
            )
        return found

    def __str__(self) -> str:
        heads = ",".join(str(layer.heads) for layer in self.layers)
        ffn = ",".join(str(layer.ffn) for layer in self.layers)
        mux = f" n={self.mux.n} at={self.mux.at}" if self.mux else ""
        return (
            f"encoder{{hidden={self.hidden} head_dim={self.head_dim} heads={heads} "
            f"ffn={ffn}{mux}}}"
        )
