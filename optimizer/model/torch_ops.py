"""`Ops` in torch: runs the forward pass, with gradients of weights and of factors of units.

Every unit is multiplied by a factor z, which is 0 if the unit is masked, else 1. So a masked
model runs and has gradients before it is sliced:

    head h:        c_h        -> z_h * c_h            (c_h: context vector of the head)
    FFN unit j:    u_j        -> z_j * u_j            (u_j: input of the output map)
    hidden k:      every write to the residual stream is multiplied by z_k, and norms compute
                   their statistics over unmasked dimensions only
    no unit left:  the branch, its biases and its norm are skipped
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prumux.optimizer.base.errors import UsageError

from .axes import Weight
from .families.bag import PRIME
from .families.registry import family_of
from .ops import Disentangled, Lookup, Relative, Rotary
from .sizes import Branch, Encoder, Pool
from .weights import weight_table

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors of units as floats: [H], or [B, H] if each (mixed) row has its own factors."""

    heads: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]
    hidden: Tensor | None


class Parameters(Protocol):
    """An object that returns weights by name, such as any `nn.Module`."""

    def get_parameter(self, target: str) -> nn.Parameter:
        """See `nn.Module.get_parameter`."""


@dataclass(eq=False)
class TorchOps:
    """The forward pass of one batch. `mask` [B, T] is 1 at real tokens; `mix` updates it."""

    encoder: Encoder
    weights: Parameters
    mask: Tensor
    factors: Factors
    ids: Tensor | None = None
    token_types: Tensor | None = None
    row_mask: Tensor = field(init=False)
    """The mask of single rows, before rows are mixed."""
    shared: dict[object, Tensor] = field(default_factory=dict)
    """A cache of biases and rotary angles that all layers share."""

    def __post_init__(self) -> None:
        self.row_mask = self.mask
        self.table: Mapping[str, Weight] = weight_table(self.encoder)
        self.p = self.weights.get_parameter

    def embed(self) -> Tensor:
        """See `Ops.embed`."""
        declared = family_of(self.encoder).embeddings(self.encoder)
        found = [self._lookup(x) for x in declared.lookups]
        x = found[0]
        for other in found[1:]:
            x = x + other
        if declared.norm:
            x = self.norm(declared.norm, x)
        if declared.project:
            return self.linear(declared.project, x)
        return self._masked(x)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """See `Ops.linear`."""
        y = self.apply(name, x)
        return self._masked(y) if self._hidden(f"{name}.weight") else y

    def apply(self, name: str, x: Tensor) -> Tensor:
        """The linear map without masks. Subclasses may record its input and output."""
        return self._read(name, x)

    def norm(self, name: str, x: Tensor, *, centred: bool = True) -> Tensor:
        """See `Ops.norm`."""
        weight, eps = self.p(f"{name}.weight"), self.encoder.norm_eps
        bias = self.p(f"{name}.bias") if f"{name}.bias" in self.table else None
        z = self.factors.hidden if self._hidden(f"{name}.weight") else None
        if z is None and centred:
            return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
        z = torch.ones_like(weight) if z is None else per_row(z, x)
        alive = z.sum(-1, keepdim=True)
        mean = (x * z).sum(-1, keepdim=True) / alive if centred else 0.0
        off = (x - mean) * z
        power = off.square().sum(-1, keepdim=True) / alive
        y = off * torch.rsqrt(power + eps) * weight
        return (y if bias is None else y + bias) * z

    def activation(self, kind: str, x: Tensor) -> Tensor:
        """See `Ops.activation`."""
        return ACTIVATIONS[kind](x)

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Ops.multiply`."""
        return x * y

    def attention(
        self,
        branch: Branch,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        rotary: Rotary | None = None,
        relative: Relative | None = None,
        disentangled: Disentangled | None = None,
        window: int | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """See `Ops.attention`."""
        q, k, v = (self._split(branch, x) for x in (query, key, value))  # [B, H, T, K]
        if scale is not None:  # `attend` divides by the root of K
            q = q * (scale * math.sqrt(self.encoder.head_dim))
        if rotary is not None:
            q, k = self._rotated(rotary, q), self._rotated(rotary, k)
        bias = self._padding()
        if window is not None:
            # The minimum of both: their sum would be -inf, and a softmax over -inf is nan.
            bias = torch.minimum(bias, self._window(window, q.shape[2], k.shape[2]))
        if relative is not None:
            bias = bias + self._relative(relative, q.shape[2], k.shape[2])
        if disentangled is not None:
            terms = self._disentangled(branch, disentangled, q, k, scale)
            bias = bias + terms
        return self.attend(q, k, v, bias).transpose(1, 2).flatten(2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Contexts [B, H, T, K] of split queries, keys, values, with a `bias` of scores."""
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.encoder.head_dim) + bias
        return torch.softmax(scores, dim=-1) @ v

    def gate(self, branch: Branch, units: Tensor) -> Tensor:
        """See `Ops.gate`."""
        z = self.factors.heads if branch.kind == "attention" else self.factors.ffn
        if not z:
            return units
        factor = z[branch.index]
        if branch.kind == "attention":
            factor = factor.repeat_interleave(self.encoder.head_dim, -1)
        return units * per_row(factor, units)

    def write(self, branch: Branch, inner: Tensor, x: Tensor) -> Tensor:
        """See `Ops.write`."""
        return x + self.linear(branch.output, inner)

    def first(self, x: Tensor) -> Tensor:
        """See `Ops.first`."""
        return x[:, :1]

    def pool(self, x: Tensor) -> Tensor:
        """See `Ops.pool`."""
        match self.encoder.pooling:
            case "first":
                return x[:, 0]
            case "mean":
                real = self.row_mask[..., None].to(x)
                return (x * real).sum(1) / real.sum(1).clamp(min=1)
            case "mean_sqrt":
                return self._pooled("mean_sqrt", x)
            case "all":
                return x
            case "several":
                return torch.cat([self._pooled(kind, x) for kind in self.encoder.pools], -1)

    def _pooled(self, kind: Pool, x: Tensor) -> Tensor:
        """One pool of the states, without padding: [B, T, D] -> [B, D]."""
        real = self.row_mask[..., None].to(x)  # [B, T, 1]
        match kind:
            case "first":
                return x[:, 0]
            case "max":
                return x.masked_fill(real == 0, torch.finfo(x.dtype).min).amax(1)
            case "last":
                last = real.sum(1, keepdim=True).long().clamp(min=1) - 1  # [B, 1, 1]
                return x.gather(1, last.expand(-1, 1, x.shape[-1]))[:, 0]
            case "weighted_mean":
                place = torch.arange(1, x.shape[1] + 1, device=x.device).to(x)
                real = real * place[:, None]
        total = real.sum(1).clamp(min=1)
        return (x * real).sum(1) / (total.sqrt() if kind == "mean_sqrt" else total)

    def normalize(self, x: Tensor) -> Tensor:
        """See `Ops.normalize`."""
        return F.normalize(x, dim=-1)

    def mix(self, x: Tensor) -> Tensor:
        """See `Ops.mix`.

        Raises:
            UsageError: B is not a multiple of n.
        """
        n = self.encoder.slots
        if len(x) % n:
            raise UsageError(
                f"{len(x)} rows do not fill mixed rows of {n}: give a multiple of {n}"
            )
        mask = self.mask.view(-1, n, self.mask.shape[1])  # [B/n, n, T]
        real = mask[..., : x.shape[1], None].to(x)
        keyed = x.reshape(-1, n, *x.shape[1:]) * (self.p("mux.keys")[:, None] * real)
        self.mask = mask.amax(1)
        self.shared.clear()
        return keyed.sum(1) / real.sum(1).clamp(min=1)

    def unmix(self, x: Tensor) -> Tensor:
        """See `Ops.unmix`."""
        mux = self.encoder.mux
        assert mux is not None
        slots = (mux.n, *(1 for _ in x.shape[1:-1]), x.shape[-1])
        y = x[:, None] * self.p("demux.scale").view(slots) + self.p("demux.shift").view(slots)
        y = self._masked(y.flatten(0, 1))
        for i in range(mux.demux):
            at = f"demux.{i}"
            y = self.norm(
                f"{at}.norm",
                y + self.linear(f"{at}.down", F.gelu(self.linear(f"{at}.up", y))),
            )
        return y

    def _lookup(self, what: Lookup) -> Tensor:
        assert self.ids is not None
        if what.source == "positions":
            index = position_ids(self.encoder, self.ids)
        elif what.source == "token_types":
            types = self.token_types
            index = torch.zeros_like(self.ids) if types is None else types
        elif what.source == "segments":
            types = self.token_types
            index = self.ids if types is None else self.ids + self.encoder.vocab * types
        elif what.source == "pairs":
            index = pair_ids(self.encoder, self.ids)
        else:
            index = self.ids
        return self.p(f"{what.table}.weight")[index]

    def _hidden(self, name: str) -> bool:
        """True if the first axis of a weight is the hidden axis."""
        return self.table[name].kinds(self.encoder)[0] == "hidden"

    def _masked(self, x: Tensor) -> Tensor:
        z = self.factors.hidden
        return x if z is None else x * per_row(z, x)

    def _split(self, branch: Branch, x: Tensor) -> Tensor:
        heads = self.encoder.layers[branch.index].heads
        return x.reshape(*x.shape[:2], heads, self.encoder.head_dim).transpose(1, 2)

    def _once(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def _padding(self) -> Tensor:
        """[B, 1, 1, T]: 0 for real tokens, the lowest float for padding."""
        return self._once("padding", lambda: padding_bias(self.mask))

    def _window(self, size: int, queries: int, keys: int) -> Tensor:
        """[Tq, Tk]: 0 for positions that differ by at most `size`, else the lowest float."""

        def make() -> Tensor:
            far = _distances(queries, keys, self.mask.device).abs() > size
            return far.float() * torch.finfo(torch.float32).min

        return self._once(("window", size, queries), make)

    def _relative(self, of: Relative, queries: int, keys: int) -> Tensor:
        """[1, H, Tq, Tk]: the table's entry for each distance between query and key."""
        buckets = torch.as_tensor(of.buckets, device=self.mask.device)
        rows = buckets[_distances(queries, keys, self.mask.device) + len(of.buckets) // 2]
        return self.p(f"{of.table}.weight")[rows].permute(2, 0, 1)[None]

    def _disentangled(
        self, branch: Branch, of: Disentangled, q: Tensor, k: Tensor, scale: float | None
    ) -> Tensor:
        """[B, H, Tq, Tk]: the terms that the vectors of distances add to the scores.

        `q` was scaled for `attend`, which divides the products of q by the root of K. So the
        products of q are divided by this root here, too.
        """
        root, device = math.sqrt(self.encoder.head_dim), self.mask.device
        queries, keys, half = q.shape[2], k.shape[2], len(of.rows) // 2
        apart = torch.arange(1 - queries, keys, device=device).clamp(-half, half) + half
        rows = torch.as_tensor(of.rows, device=device)[apart]
        used, at = torch.unique(rows, return_inverse=True)
        vectors = self._vectors(of, used, len(q))
        index = at[_distances(queries, keys, device) + queries - 1]  # [Tq, Tk]
        index = index.expand(len(q), q.shape[1], -1, -1)
        found = torch.zeros((), device=q.device, dtype=q.dtype)
        if of.key:
            r = self._split(branch, self._read(of.key, vectors))  # [1 or B, H, R, K]
            found = found + (q @ r.transpose(-1, -2) / root).gather(-1, index)
        if of.query:
            r = self._split(branch, self._read(of.query, vectors))
            scores = r @ k.transpose(-1, -2) * (1 / root if scale is None else scale)
            found = found + scores.gather(-2, index)  # of [B, H, R, Tk]
        return found

    def _vectors(self, of: Disentangled, rows: Tensor, batch: int) -> Tensor:
        """Rows of a table of distances after their norm, [1, R, D] or [B, R, D]."""
        x = self.p(f"{of.table}.weight")[rows][None]
        z = self.factors.hidden
        if z is not None and z.dim() > 1:  # a factor for every row of the batch
            x = x.expand(batch, -1, -1)
        return self.norm(of.norm, x) if of.norm else self._masked(x)

    def _read(self, name: str, x: Tensor) -> Tensor:
        """A linear map that subclasses do not record, for inputs other than states."""
        bias = self.p(f"{name}.bias") if f"{name}.bias" in self.table else None
        return F.linear(x, self.p(f"{name}.weight"), bias)

    def _rotated(self, rotary: Rotary, x: Tensor) -> Tensor:
        """Queries or keys [B, H, T, K], rotated by their positions."""
        size = x.shape[-1]

        def angles() -> Tensor:
            steps = torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size
            place = torch.arange(self.mask.shape[1], device=x.device, dtype=torch.float32)
            return place[:, None] / rotary.base**steps  # [T, K/2]

        angle = self._once(("angles", rotary), angles)[: x.shape[2]]
        cos, sin = angle.cos(), angle.sin()
        if rotary.interleaved:
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).to(x)
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x)


def per_row(factor: Tensor, like: Tensor) -> Tensor:
    """Reshape the factors of units so that they can be multiplied with `like`.

    Factors [W] are unchanged. Factors [B, W] become [B, 1, ..., W]. If the rows of `like` are
    not mixed yet, each row of factors is repeated for all rows of its group.
    """
    if factor.dim() == 1:
        return factor
    if len(factor) != len(like):
        factor = factor.repeat_interleave(len(like) // len(factor), 0)
    return factor.view(len(factor), *(1 for _ in like.shape[1:-1]), -1)


def padding_bias(mask: Tensor) -> Tensor:
    """Additive mask [B, 1, 1, T] of [B, T]: 0 for real tokens, the lowest float elsewhere."""
    return (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min


def position_ids(encoder: Encoder, input_ids: Tensor) -> Tensor:
    """Row of the position table for every token: [1, T], or [B, T] for RoBERTa's rule."""
    if encoder.positions_from == "padding":
        real = (input_ids != encoder.pad_id).long()
        return torch.cumsum(real, dim=1) * real + encoder.pad_id
    return torch.arange(input_ids.shape[1], device=input_ids.device)[None]


def pair_ids(encoder: Encoder, input_ids: Tensor) -> Tensor:
    """Bucket of each token and its predecessor, [B, T]. Padding precedes the first token."""
    before = F.pad(input_ids[:, :-1], (1, 0), value=encoder.pad_id)
    return (before * PRIME + input_ids) % int(encoder.number("buckets"))


def _distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """Key position minus query position, [Tq, Tk]."""
    at = torch.arange(keys, device=device)
    return at[None] - at[:queries, None]
