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
"""Upper bound of a model's constants, far above any real one."""
Constant = float | int | str | bool | tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer. 0 means that the branch is removed, with its norm and biases."""

    heads: int
    ffn: int


@dataclass(frozen=True)
class Branch:
    """One residual branch: `attention` or `ffn` of layer `index`."""

    index: int
    kind: BranchKind

    @property
    def name(self) -> str:
        """The prefix of the branch's weights."""
        return f"layers.{self.index}.{self.kind}"

    @property
    def output(self) -> str:
        """The prefix of the linear map that writes to the residual stream."""
        return f"{self.name}.{'output' if self.kind == 'attention' else 'down'}"


@dataclass(frozen=True)
class Multiplexing:
    """Multiplexing: n rows share one forward pass, n >= 2. Without it, `Encoder.mux` is None.

    Row i of a batch goes into mixed row i // n, slot i % n.
    """

    n: int
    at: int = 0
    """Rows are mixed before this layer. Earlier layers run on every row."""
    variant: Keys = "learned"
    """The kind of the keys. Every slot has its own key."""
    demux: int = 1
    """Hidden layers of the demultiplexer."""


@dataclass(frozen=True)
class HeadStep:
    """A step after the pooling of a sentence embedding: a linear map or a normalisation."""

    kind: Literal["dense", "normalize"]
    out: int = 1
    """Output width of a linear map."""
    bias: bool = True
    activation: HeadActivation = "identity"


@dataclass(frozen=True)
class SentenceHead:
    """The head of a sentence embedding: concatenated pools of a row's states, then steps."""

    pools: tuple[Pool, ...] = ("mean",)
    steps: tuple[HeadStep, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """The sizes of an encoder and its head."""

    vocab: int
    positions: int
    """Number of rows of the position table; without a table, the largest input length."""
    token_types: int
    """Number of token types; 0 if the model takes no `token_type_ids`."""
    embedding: int
    """Width of the embedding tables. A linear map follows if it differs from `hidden`."""
    hidden: int
    head_dim: int
    layers: tuple[Layer, ...]
    labels: int
    head: HeadKind = "tanh"
    """Activation between the head's two linear maps; `linear` = the head has only one."""
    activation: Activation = "gelu"
    norm_eps: float = 1e-12
    pad_id: int = 0
    positions_from: Literal["index", "padding"] = "index"
    """`padding`: RoBERTa's rule, position = pad_id + number of non-pad ids so far."""
    projected: bool = False
    """True if a linear map projects the embeddings to the hidden size, as in ELECTRA."""
    pool_early: bool = False
    """True if the last attention and all later branches run only at the first position."""
    mux: Multiplexing | None = None
    """The mixing of rows; None = every row has its own forward pass."""
    pooling: Pooling = "first"
    """The positions that the head reads.

    - first: the first position.
    - mean: the mean of all positions.
    - mean_sqrt: the sum of all positions, divided by the root of their number.
    - all: every position separately.
    - several: the pools of `sentence`.
    """
    family: str = "bert"
    """The architecture: a `model_type` of `prumux.optimizer.model.families`."""
    constants: tuple[tuple[str, Constant], ...] = ()
    """The family's own constants by name, such as the bases of rotary positions."""
    sentence: SentenceHead | None = None
    """The head of a sentence embedding, in place of the family's; `labels` is its width."""

    @property
    def slots(self) -> int:
        """Number of rows that share a forward pass."""
        return self.mux.n if self.mux else 1

    @property
    def most_tokens(self) -> int:
        """Largest number of tokens in a row. RoBERTa's rule leaves some positions unused."""
        unused = self.pad_id + 1 if self.positions_from == "padding" else 0
        return self.positions - unused

    @property
    def pooled(self) -> bool:
        """True if logits are [B, C], one answer per row; False if they are [B, T, C]."""
        return self.pooling != "all"

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The pools that the head reads and concatenates."""
        if self.pooling == "several" and self.sentence is not None:
            return self.sentence.pools
        match self.pooling:
            case "mean" | "mean_sqrt" as pool:
                return (pool,)
            case _:
                return ("first",)

    @property
    def reads_first(self) -> bool:
        """True if the head reads only the first position."""
        return self.pooling == "first"

    @property
    def last_attention(self) -> int:
        """Index of the last layer with attention heads; -1 if there is none."""
        return max((i for i, layer in enumerate(self.layers) if layer.heads), default=-1)

    @property
    def narrow_from(self) -> int:
        """Index of the first layer that runs only at the first position, or `len(layers)`."""
        early = self.pool_early and self.last_attention >= 0
        return self.last_attention if early else len(self.layers)

    def units(self, branch: Branch) -> int:
        """Number of heads or FFN units of a branch."""
        layer = self.layers[branch.index]
        return layer.heads if branch.kind == "attention" else layer.ffn

    def branches(self) -> list[Branch]:
        """The branches that have units, in order."""
        pairs = ((i, kind) for i in range(len(self.layers)) for kind in KINDS)
        return [b for b in (Branch(*pair) for pair in pairs) if self.units(b)]

    def constant(self, name: str) -> Constant:
        """One of the family's own constants."""
        return dict(self.constants)[name]

    def number(self, name: str) -> float:
        """One of the family's own constants, which must be a number.

        Raises:
            ValueError: the constant is not a number, or too large, as in a damaged file.
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
