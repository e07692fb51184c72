"""The model as a plain `torch.nn.Module`: the meaning that every pass and target must keep.

Masks are factors, so a masked model runs and has gradients before anything is cut:

    head h:        c_h        -> z_h * c_h            (c_h: its context vector)
    FFN unit j:    g(u_j)     -> z_j * g(u_j)
    hidden k:      every write to the residual stream is multiplied by z_k, and LayerNorm takes
                   its statistics over surviving dimensions only
    no survivor:   the branch, its bias and its LayerNorm are skipped

A multiplexed model runs n rows in one. Before layer `at` they are mixed, after the last layer
the mixed state is taken apart again:

    mix:    y_t = sum_i r_it x_it * k_i / sum_i r_it     (r_it = 1 where row i has a token)
    demux:  z_i = h * s_i + c_i, then z_i <- LN(z_i + W g(V z_i)) so often as there are layers

with one key k, scale s and shift c a slot. The mixed row attends to every position where some
member has a token. As padding has no part in the mean, it changes no row's answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prumux.optimizer.base.errors import UsageError

from .ir import Encoder, Model, expected_shapes
from .row_groups import in_groups

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
    """Mask factors as floats. All may carry an axis of (mixed) rows: [H] or [B, H]."""

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
        return self.answer(x, z.hidden)

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
        mux = self.sizes.mux
        for branch in self.branches():
            if mux and branch.index >= mux.at:
                x, attention_mask = self.mix(x, attention_mask)
                bias, mux = attention_bias(attention_mask), None
            rows = x[:, :1] if self.sizes.pool_early and branch == last else x
            inner = self.inner(branch, x, bias, rows=rows, factors=factors)
            x = self.close(branch, inner, rows, factors=factors)
            yield branch, x
        if mux:  # no layer is left to run on mixed rows
            yield Branch(len(self.sizes.layers) - 1, "ffn"), self.mix(x, attention_mask)[0]

    def mix(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed rows [B/n, T, D] of states [B, T, D], and where any member has a token.

        Raises:
            UsageError: B is no multiple of n.
        """
        n = self.sizes.slots
        if len(x) % n:
            raise UsageError(
                f"{len(x)} rows do not fill mixed rows of {n}: give a multiple of {n}"
            )
        mask = attention_mask.view(-1, n, attention_mask.shape[1])  # [B/n, n, T]
        real = mask[..., : x.shape[1], None].to(x)
        mixed = (
            x.reshape(-1, n, *x.shape[1:]) * (self.get_parameter("mux.keys")[:, None] * real)
        ).sum(1)
        return mixed / real.sum(1).clamp(min=1), mask.amax(1)

    def unmix(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """States [B, ..., D] of the members of mixed rows [B/n, ..., D]."""
        mux, p = self.sizes.mux, self.get_parameter
        assert mux is not None
        slots = (mux.n, *(1 for _ in x.shape[1:-1]), x.shape[-1])
        y = x[:, None] * p("demux.scale").view(slots) + p("demux.shift").view(slots)
        y = _masked(y.flatten(0, 1), hidden)
        for i in range(mux.demux):
            inner = _masked(F.gelu(self.linear(f"demux.{i}.up", y)), hidden)
            inner = _masked(self.linear(f"demux.{i}.down", inner), hidden)
            y = self._norm(f"demux.{i}.norm", y + inner, hidden)
        return y

    def answer(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits of every row from the residual stream after the last branch, [B, T, D]."""
        x = x[:, 0] if self.sizes.pooled else x
        return self.classify(self.unmix(x, hidden) if self.sizes.mux else x, hidden)

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
            return inner * _per_row(z.ffn[branch.index], inner) if z.ffn else inner
        heads = self.sizes.layers[branch.index].heads
        q = self._split(self.linear(f"{branch.name}.query", rows), heads)  # [B, H, T, K]
        k = self._split(self.linear(f"{branch.name}.key", x), heads)
        v = self._split(self.linear(f"{branch.name}.value", x), heads)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.sizes.head_dim) + bias
        context = torch.softmax(scores, dim=-1) @ v
        if z.heads:
            shape = (-1, heads, 1, 1)
            context = context * _per_row(z.heads[branch.index], x[:, 0]).reshape(shape)
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
        hidden = _per_row(hidden, x)
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
        # In the order of the sizes, whatever that of the mapping: checkpoints count on it.
        attach(self, {name: model.weights[name] for name in expected_shapes(self.sizes)})
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


def _per_row(factor: Tensor, like: Tensor) -> Tensor:
    """A factor [W] as it is; [B, W] with axes in between, repeated for rows not yet mixed."""
    if factor.dim() == 1:
        return factor
    if len(factor) != len(like):
        factor = factor.repeat_interleave(len(like) // len(factor), 0)
    return factor.view(len(factor), *(1 for _ in like.shape[1:-1]), -1)


def _masked(x: Tensor, hidden: Tensor | None) -> Tensor:
    return x if hidden is None else x * _per_row(hidden, x)


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


def run(module: EncoderModule, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Logits for numpy inputs, any number of rows, without gradients."""

    def whole_groups(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        with torch.inference_mode():
            logits: Tensor = module(**{k: torch.as_tensor(v) for k, v in inputs.items()})
        return logits.numpy()

    return in_groups(whole_groups, module.sizes.slots)(inputs)
