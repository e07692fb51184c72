"""The model as a plain `torch.nn.Module`: the meaning that every pass and target must keep.

Masks are factors, so a masked model runs and has gradients before anything is cut:

    head h:        c_h        -> z_h * c_h            (c_h: its context vector)
    FFN unit j:    g(u_j)     -> z_j * g(u_j)
    hidden k:      every write to the residual stream is multiplied by z_k, and LayerNorm takes
                   its statistics over surviving dimensions only
    no survivor:   the branch, its bias and its LayerNorm are skipped
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ir import Encoder, Model

BranchKind = Literal["attention", "ffn"]
KINDS: tuple[BranchKind, ...] = ("attention", "ffn")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, eq=False)
class Factors:
    """Mask factors as floats. All may carry a row axis: [H] or [B, H]."""

    heads: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]
    hidden: Tensor | None


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
        """The prefix of the map that writes to the residual stream."""
        return f"{self.name}.{'output' if self.kind == 'attention' else 'down'}"


class EncoderForward:
    """The forward pass, for any `nn.Module` with the parameter names of `expected_shapes`.

    The host sets `sizes`, `alive_attention`, `alive_ffn` and `factors`.
    """

    sizes: Encoder
    alive_attention: list[bool]
    alive_ffn: list[bool]
    factors: Factors

    if TYPE_CHECKING:

        def get_parameter(self, target: str) -> nn.Parameter:
            """As in `nn.Module`."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        factors: Factors | None = None,
    ) -> Tensor:
        """Logits [B, C], or [B, T, C] for token tasks.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], 1 = real token.
            token_type_ids: int64 [B, T]; all zeros when left out.
            factors: mask factors to use in place of the model's own (for their gradients).
        """
        z = factors or self.factors
        x = self.embed(input_ids, token_type_ids, z.hidden)  # [B, T, D]
        for _, x in self.states(x, attention_mask, z):  # noqa: B007, B020 - the last is read
            pass
        return self.classify(x[:, 0] if self.sizes.pooled else x, z.hidden)

    def states(
        self, x: Tensor, attention_mask: Tensor, factors: Factors | None = None
    ) -> Iterator[tuple[Branch, Tensor]]:
        """The residual stream after each branch, [B, T, D], or [B, 1, D] once narrowed.

        Args:
            x: the embeddings, [B, T, D].
            attention_mask: [B, T], 1 = real token.
            factors: as in `forward`.
        """
        bias = attention_bias(attention_mask)
        last = Branch(self.sizes.last_attention, "attention")
        for branch in self.branches():
            rows = x[:, :1] if self.sizes.pool_early and branch == last else x
            inner = self.inner(branch, x, bias, rows=rows, factors=factors)
            x = self.close(branch, inner, rows, factors=factors)
            yield branch, x

    def branches(self) -> list[Branch]:
        """The branches that are left, in order."""
        pairs = zip(self.alive_attention, self.alive_ffn, strict=True)
        return [
            Branch(i, kind)
            for i, alive in enumerate(pairs)
            for kind, left in zip(KINDS, alive, strict=True)
            if left
        ]

    def embed(
        self, input_ids: Tensor, token_type_ids: Tensor | None, hidden: Tensor | None
    ) -> Tensor:
        """Embeddings [B, T, D]; positions follow the encoder's rule."""
        e, p = self.sizes, self.get_parameter
        x = p("embeddings.word.weight")[input_ids]
        x = x + p("embeddings.position.weight")[position_ids(e, input_ids)]
        if e.token_types:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + p("embeddings.token_type.weight")[types]
        x = self._norm("embeddings.norm", x, None if e.projected else hidden)
        if e.projected:
            x = self.linear("embeddings.project", x)
        return _masked(x, hidden)

    def classify(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The head: [..., D] -> [..., C]."""
        if self.sizes.pooled:
            x = ACTIVATIONS[self.sizes.head](self.linear("head.dense", x))
            x = _masked(x, hidden)
        return self.linear("head.output", x)

    def inner(
        self,
        branch: Branch,
        x: Tensor,
        bias: Tensor,
        *,
        rows: Tensor | None = None,
        factors: Factors | None = None,
    ) -> Tensor:
        """What a branch feeds its output map: [B, T, H*K] for attention, [B, T, F] for FFN.

        Args:
            x: input of the branch, [B, T, D].
            bias: additive attention mask, [B, 1, 1, T].
            rows: the positions of `x` to compute, all of them when left out.
        """
        z, rows = factors or self.factors, x if rows is None else rows
        if branch.kind == "ffn":
            up = self.linear(f"{branch.name}.up", rows)
            inner = ACTIVATIONS[self.sizes.activation](up)
            return inner * _per_row(z.ffn[branch.index], 1) if z.ffn else inner
        heads = self.sizes.layers[branch.index].heads
        q = self._split(self.linear(f"{branch.name}.query", rows), heads)  # [B, H, T, K]
        k = self._split(self.linear(f"{branch.name}.key", x), heads)
        v = self._split(self.linear(f"{branch.name}.value", x), heads)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.sizes.head_dim) + bias
        context = torch.softmax(scores, dim=-1) @ v
        if z.heads:
            context = context * _per_row(z.heads[branch.index], 0)[..., None, None]
        return context.transpose(1, 2).flatten(2)

    def close(
        self, branch: Branch, inner: Tensor, rows: Tensor, *, factors: Factors | None = None
    ) -> Tensor:
        """Output map, residual and LayerNorm of a branch, [B, T, D]."""
        y = self.residual(branch, inner, rows, factors=factors)
        return self.normalise(branch, y, factors=factors)

    def residual(
        self, branch: Branch, inner: Tensor, rows: Tensor, *, factors: Factors | None = None
    ) -> Tensor:
        """Output map plus residual, before LayerNorm: [B, T, D]."""
        hidden = (factors or self.factors).hidden
        y = self.linear(branch.output, inner)
        return rows + _masked(y, hidden)

    def normalise(
        self, branch: Branch, y: Tensor, *, factors: Factors | None = None
    ) -> Tensor:
        """A branch's LayerNorm, [B, T, D]."""
        return self._norm(f"{branch.name}.norm", y, (factors or self.factors).hidden)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.reshape(*x.shape[:2], heads, self.sizes.head_dim).transpose(1, 2)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """One of the linear maps by its canonical name."""
        return F.linear(
            x, self.get_parameter(f"{name}.weight"), self.get_parameter(f"{name}.bias")
        )

    def _norm(self, name: str, x: Tensor, hidden: Tensor | None) -> Tensor:
        weight, bias = self.get_parameter(f"{name}.weight"), self.get_parameter(f"{name}.bias")
        if hidden is None:
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.sizes.norm_eps)
        hidden = _per_row(hidden, x.dim() - 2)
        alive = hidden.sum(-1, keepdim=True)
        mean = (x * hidden).sum(-1, keepdim=True) / alive
        centred = (x - mean) * hidden
        variance = centred.square().sum(-1, keepdim=True) / alive
        return (centred * torch.rsqrt(variance + self.sizes.norm_eps) * weight + bias) * hidden


class EncoderModule(EncoderForward, nn.Module):
    """Runs a `Model`; `state_dict()` has the names of `expected_shapes`."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.sizes = model.encoder
        attach(self, model.weights)
        self.alive_attention = [bool(m.any()) for m in model.masks.heads]
        self.alive_ffn = [bool(m.any()) for m in model.masks.ffn]
        self.factors = _factors(model)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Factors go to another device with the weights."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        z = self.factors
        hidden = None if z.hidden is None else fn(z.hidden)
        self.factors = Factors(tuple(map(fn, z.heads)), tuple(map(fn, z.ffn)), hidden)
        return self


def attach(host: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Register tensors as parameters under their dotted names."""
    for name, tensor in weights.items():
        *path, last = name.split(".")
        module = host
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))


def attention_bias(attention_mask: Tensor) -> Tensor:
    """Additive mask [B, 1, 1, T]: 0 for real tokens, the lowest float for padding."""
    return (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min


def _per_row(factor: Tensor, axes: int) -> Tensor:
    """A factor [W] as it is, [B, W] with `axes` axes put in between: [B, 1, W]."""
    for _ in range(axes if factor.dim() > 1 else 0):
        factor = factor[:, None]
    return factor


def _masked(x: Tensor, hidden: Tensor | None) -> Tensor:
    return x if hidden is None else x * _per_row(hidden, x.dim() - 2)


def position_ids(encoder: Encoder, input_ids: Tensor) -> Tensor:
    """Row of the position table for every token: [1, T], or [B, T] where padding counts."""
    if encoder.positions_from == "padding":
        real = (input_ids != encoder.pad_id).long()
        return torch.cumsum(real, dim=1) * real + encoder.pad_id
    return torch.arange(input_ids.shape[1], device=input_ids.device)[None]


def _factors(model: Model) -> Factors:
    """The masks as factors; all-true groups are left out, so a dense model pays nothing."""
    masks = model.masks
    return Factors(
        heads=() if _trivial(masks.heads) else tuple(m.float() for m in masks.heads),
        ffn=() if _trivial(masks.ffn) else tuple(m.float() for m in masks.ffn),
        hidden=None if bool(masks.hidden.all()) else masks.hidden.float(),
    )


def _trivial(masks: tuple[Tensor, ...]) -> bool:
    """Whether every branch is whole or gone, so that no factor is needed."""
    return all(bool(m.all()) or not bool(m.any()) for m in masks)


def run(module: EncoderModule, inputs: Mapping[str, object]) -> Tensor:
    """Logits for numpy inputs as the ONNX graph takes them, without gradients."""
    with torch.inference_mode():
        logits: Tensor = module(**{k: torch.as_tensor(v) for k, v in inputs.items()})
    return logits
