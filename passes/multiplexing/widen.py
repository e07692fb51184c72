"""Put n copies of a model side by side in a state n times as wide: one copy for each slot.

The mixed state is the concatenation of the rows' states. So the keys are indicators of blocks,
and every map is block diagonal. The slots are separate at first, with two exceptions:

- LayerNorm computes one mean and one variance over all slots;
- mixing takes a mean over the rows that have a token: where only one row has a token, its
  state is n times as large.

Training fills in the off-diagonal blocks. At first, demultiplexing copies a slot's block to
all blocks,

    z_i = LN(y + [I .. I]^T (g(S y / e) - g(-S y / e)))     with S = [I .. I], y = e * block i

This is exact for activations with g(u) - g(-u) = u, such as GELU.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from prumux.optimizer.model.axes import WIDE, Weight
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder, Layer, Multiplexing
from prumux.optimizer.model.weights import weights_of

from .initial_weights import added_weights, last_norm

KEPT = 1 / 16
"""e: the scale of the state itself, relative to its copies. With the scale 0, the state would
get no gradient."""


def side_by_side(model: Model, mux: Multiplexing, random: torch.Generator) -> Model:
    """Widen a model n times (hidden dimensions, heads and FFN units) and add mux and demux.

    Args:
        model: a model without multiplexing. Its masks may mark units that are not cut yet.
        mux: the multiplexing; it mixes at the embeddings.
        random: the generator for weights that are not copies.
    """
    n, e, masks = mux.n, model.encoder, model.masks
    encoder = replace(
        e,
        hidden=n * e.hidden,
        layers=tuple(Layer(n * x.heads, n * x.ffn) for x in e.layers),
        projected=True,
        mux=mux,
    )
    given = dict(model.weights)
    if not e.projected:
        given["embeddings.project.weight"] = torch.eye(e.hidden)
        given["embeddings.project.bias"] = torch.zeros(e.hidden)
    added = _taken_apart(model, encoder, mux, random)
    left = model.kept_hidden
    return replace(
        model,
        encoder=encoder,
        weights={
            x.name: added[x.name]
            if x.name in added
            else _widened(x, encoder, given[x.name], n)
            for x in weights_of(encoder)
        },
        masks=Masks(
            heads=tuple(m.repeat(n) for m in masks.heads),
            ffn=tuple(m.repeat(n) for m in masks.ffn),
            hidden=masks.hidden.repeat(n),
        ),
        kept_hidden=(torch.arange(e.hidden) if left is None else left).repeat(n),
        notes={"parameters": sum(x.numel() for x in added.values())},
    )


def _widened(weight: Weight, encoder: Encoder, given: Tensor, n: int) -> Tensor:
    """Widen one weight for n models. Each model reads its own block only."""
    wide = [kind in WIDE for kind in weight.kinds(encoder)]
    if weight.name.startswith("embeddings.project."):
        return torch.cat([given] * n) * math.sqrt(n)  # mixing takes a mean, keys are root n
    if weight.name.startswith("head.") and len(wide) > 1:  # reads the mean of all blocks
        return given.repeat(*(n if x else 1 for x in wide)) / n
    if all(wide) and len(wide) > 1:
        found: Tensor = torch.block_diag(*[given] * n)  # type: ignore[no-untyped-call]
        return found
    return given.repeat(*(n if x else 1 for x in wide))


def _taken_apart(
    model: Model, encoder: Encoder, mux: Multiplexing, random: torch.Generator
) -> dict[str, Tensor]:
    """Initial weights of mux and demux."""
    n, each = mux.n, model.encoder.hidden
    blocks = torch.eye(n).repeat_interleave(each, 1)  # [n, n * D]
    norm = last_norm(model)
    scale = model.weights[f"{norm}.weight"]
    shift = model.weights.get(f"{norm}.bias", torch.zeros_like(scale))
    mean, power = shift.mean(), (scale.square().mean() + shift.var(correction=0)).sqrt()
    found = added_weights(blocks * math.sqrt(n), encoder, model, random)
    for i in range(mux.demux):
        norm = f"demux.{i}.norm"
        found[f"{norm}.weight"] = power.expand(n * each).clone()
        found[f"{norm}.bias"] = mean.expand(n * each).clone()
    found["demux.scale"] = blocks * (KEPT if mux.demux else n)
    if mux.demux:
        total = torch.eye(each).repeat(1, n) / KEPT  # [D, n * D]
        found["demux.0.up.weight"][: 2 * each] = torch.cat([total, -total])
        copied = torch.eye(each).repeat(n, 1)
        found["demux.0.down.weight"].zero_()
        found["demux.0.down.weight"][:, : 2 * each] = torch.cat([copied, -copied], 1)
    return found
