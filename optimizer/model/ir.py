"""What a model is: sizes, weights, masks. All values are frozen and no tensor is ever changed.

Axis letters used in shapes: B rows, T positions, D hidden, E embedding, H heads of a layer,
K head dimension, F FFN units of a layer, C labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from prumux.optimizer.base.errors import VerifyError
from prumux.optimizer.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
HeadKind = Literal["tanh", "relu", "gelu", "linear"]
Keys = Literal["learned", "fixed", "orthogonal"]


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer. 0 means that the branch is gone, and its LayerNorm with it."""

    heads: int
    ffn: int


@dataclass(frozen=True)
class Mux:
    """How n rows share one forward pass. No multiplexing is `None`, not n=1.

    Row number i of a batch goes into mixed row i // n, slot i % n.
    """

    n: int
    at: int = 0
    """The layer before which rows are mixed; the layers before it run on every row."""
    variant: Keys = "learned"
    """Which keys tell the slots apart."""
    demux: int = 1
    """Hidden layers of the demultiplexer."""


@dataclass(frozen=True)
class Encoder:
    """The sizes of a post-norm encoder with its classification head, and nothing else."""

    vocab: int
    positions: int
    token_types: int
    """0 where the model takes no `token_type_ids`."""
    embedding: int
    """Width of the embedding tables; a linear map follows where it differs from `hidden`."""
    hidden: int
    head_dim: int
    layers: tuple[Layer, ...]
    labels: int
    head: HeadKind = "tanh"
    """What stands between the two maps of the head; `linear` = one map at every position."""
    activation: Activation = "gelu"
    norm_eps: float = 1e-12
    pad_id: int = 0
    positions_from: Literal["index", "padding"] = "index"
    """`padding`: RoBERTa's rule, position = pad_id + number of non-pad ids so far."""
    projected: bool = False
    """Whether a linear map stands between the embedding and the first layer (ELECTRA)."""
    pool_early: bool = False
    """Whether the last attention block and all after it run at the pooled position only."""
    mux: Mux | None = None
    """How rows are mixed; None = every row has a forward pass of its own."""

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
        """Whether the head reads the first position only."""
        return self.head != "linear"

    @property
    def last_attention(self) -> int:
        """Index of the last layer that still attends, -1 if none does."""
        return max((i for i, layer in enumerate(self.layers) if layer.heads), default=-1)

    @property
    def narrow_from(self) -> int:
        """First layer that runs at the pooled position only; past the last if none does."""
        early = self.pool_early and self.last_attention >= 0
        return self.last_attention if early else len(self.layers)

    def __str__(self) -> str:
        heads = ",".join(str(layer.heads) for layer in self.layers)
        ffn = ",".join(str(layer.ffn) for layer in self.layers)
        mux = f" n={self.mux.n} at={self.mux.at}" if self.mux else ""
        return (
            f"encoder{{hidden={self.hidden} head_dim={self.head_dim} heads={heads} "
            f"ffn={ffn}{mux}}}"
        )


@dataclass(frozen=True, eq=False)
class Masks:
    """What survives. A branch with no survivor is gone, LayerNorm and bias included.

    heads: per layer bool [H]; ffn: per layer bool [F]; hidden: bool [D], shared by all.
    """

    heads: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]
    hidden: Tensor

    @staticmethod
    def full(encoder: Encoder) -> Masks:
        """Nothing pruned."""
        return Masks(
            heads=tuple(torch.ones(x.heads, dtype=torch.bool) for x in encoder.layers),
            ffn=tuple(torch.ones(x.ffn, dtype=torch.bool) for x in encoder.layers),
            hidden=torch.ones(encoder.hidden, dtype=torch.bool),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them: per layer heads, per layer FFN units, hidden."""
        return (*self.heads, *self.ffn, self.hidden)

    @property
    def all_true(self) -> bool:
        """Whether nothing is pending."""
        return all(bool(m.all()) for m in self.tensors)

    def key(self) -> str:
        """A text that tells them from others."""
        return "/".join("".join(map(str, m.int().tolist())) for m in self.tensors)

    def verify(self, encoder: Encoder) -> None:
        """Check lengths and types.

        Raises:
            VerifyError: names the first mask that is off, with both lengths.
        """
        sizes = {
            "heads": (self.heads, [x.heads for x in encoder.layers]),
            "ffn": (self.ffn, [x.ffn for x in encoder.layers]),
        }
        for kind, (masks, widths) in sizes.items():
            if len(masks) != len(widths):
                raise VerifyError(f"{len(masks)} {kind} masks for {len(widths)} layers")
            for i, (mask, width) in enumerate(zip(masks, widths, strict=True)):
                _same_mask(f"layers.{i}.{kind}", mask, width)
        _same_mask("hidden", self.hidden, encoder.hidden)
        if not bool(self.hidden.any()):
            raise VerifyError(f"the hidden mask keeps none of {encoder.hidden} dimensions")

    def sizes(self, encoder: Encoder) -> Encoder:
        """The encoder's sizes once these masks are made physical."""
        layers = tuple(
            Layer(heads=int(h.sum()), ffn=int(f.sum()))
            for h, f in zip(self.heads, self.ffn, strict=True)
        )
        hidden = int(self.hidden.sum())
        embedding = encoder.embedding if encoder.projected else hidden
        return replace(encoder, layers=layers, hidden=hidden, embedding=embedding)


@dataclass(frozen=True)
class Applied:
    """The receipt of one pass, written by the pipeline."""

    spec: str
    seconds: float
    parameters_before: int
    parameters_after: int
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Model:
    """What passes take and return. `after is before` means that nothing changed."""

    encoder: Encoder
    weights: Mapping[str, Tensor]
    """Exactly the names and shapes of `expected_shapes(encoder)`, float32."""
    task: Task
    masks: Masks
    kept_hidden: Tensor | None = None
    """Where hidden dimensions were cut out: which ones of the given model are left, int64."""
    tokenizer: PreTrainedTokenizerBase | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    """Where the model came from: `name`, `model_type`, `digest`."""
    history: tuple[Applied, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the last pass wants in its receipt; the pipeline moves it there."""

    @property
    def living_hidden(self) -> tuple[Tensor, Tensor]:
        """Hidden dimensions that are not masked: here, and in the model as it was given."""
        here = self.masks.hidden.nonzero()[:, 0]
        return here, here if self.kept_hidden is None else self.kept_hidden[here]

    @property
    def stage(self) -> Literal["dense", "masked"]:
        """`masked` while some mask is not yet physical; never stored, always computed."""
        return "dense" if self.masks.all_true else "masked"

    def verify(self) -> None:
        """Check names, shapes, dtypes and masks against the sizes.

        Raises:
            VerifyError: names the first thing that is off, with both numbers.
        """
        expected = expected_shapes(self.encoder)
        _same_names(expected, self.weights)
        for name, shape in expected.items():
            found = tuple(self.weights[name].shape)
            if found != shape:
                raise VerifyError(f"weight '{name}' has shape {found}, its sizes say {shape}")
            if self.weights[name].dtype != torch.float32:
                raise VerifyError(
                    f"weight '{name}' is {self.weights[name].dtype}, not float32"
                )
        self.masks.verify(self.encoder)
        if len(self.task.labels) != self.encoder.labels:
            raise VerifyError(
                f"{len(self.task.labels)} label names for {self.encoder.labels} labels"
            )


def _same_mask(name: str, mask: Tensor, width: int) -> None:
    if tuple(mask.shape) != (width,) or mask.dtype != torch.bool:
        raise VerifyError(
            f"mask '{name}' is {mask.dtype} {tuple(mask.shape)}, "
            f"its sizes say {torch.bool} {(width,)}"
        )


def _same_names(expected: Mapping[str, object], found: Mapping[str, object]) -> None:
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    if missing or extra:
        text = f"missing: {_few(missing)}" if missing else ""
        text += (", " if missing and extra else "") + (
            f"extra: {_few(extra)}" if extra else ""
        )
        raise VerifyError(f"the weights do not fit the sizes; {text}")


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def expected_shapes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Every weight's name and shape: the one source of truth.

    Linear maps are [out, in] as in torch. Loader, verifier, slicer and exporter use this.
    """
    e, d, k = encoder.embedding, encoder.hidden, encoder.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word.weight": (encoder.vocab, e),
        "embeddings.position.weight": (encoder.positions, e),
    }
    if encoder.token_types:
        shapes["embeddings.token_type.weight"] = (encoder.token_types, e)
    shapes |= _norm("embeddings.norm", e)
    if encoder.projected:
        shapes |= _linear("embeddings.project", d, e)
    for i, layer in enumerate(encoder.layers):
        at, ffn = f"layers.{i}.attention", f"layers.{i}.ffn"
        if layer.heads:
            for part in ("query", "key", "value"):
                shapes |= _linear(f"{at}.{part}", layer.heads * k, d)
            shapes |= _linear(f"{at}.output", d, layer.heads * k) | _norm(f"{at}.norm", d)
        if layer.ffn:
            shapes |= _linear(f"{ffn}.up", layer.ffn, d) | _linear(f"{ffn}.down", d, layer.ffn)
            shapes |= _norm(f"{ffn}.norm", d)
    if encoder.mux:
        shapes |= _mux(encoder.mux, d)
    if encoder.pooled:
        shapes |= _linear("head.dense", d, d)
    return shapes | _linear("head.output", encoder.labels, d)


def _mux(mux: Mux, d: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("mux.keys", "demux.scale", "demux.shift"), (mux.n, d)
    )
    for i in range(mux.demux):
        at = f"demux.{i}"
        shapes |= _linear(f"{at}.up", d, d) | _linear(f"{at}.down", d, d)
        shapes |= _norm(f"{at}.norm", d)
    return shapes


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
