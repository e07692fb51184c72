"""Copies of heads and FFN units for every slot of mixed rows, without gradient steps.

Mixed rows are x = sum_i k_i * s_i / sqrt(n) with keys k_i of random signs, so k_i * x is row i
plus what looks like noise. A map W of a single row becomes one map for each slot,

    reads    W_i = sqrt(n) W diag(k_i)        (query, key, value, up)
    writes   W_i = diag(k_i) W / sqrt(n)      (output, down)

and the copies lie beside each other, as more heads and more units: many models in one set of
weights, told apart by their keys (Cheung et al. 2019, "Superposition of many models into
one"). All n rows pass through what they were made for from the start, and training has only
to quieten the noise. Before the first block the mixed row is a mean, so sqrt(n) is n there.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from prumux.optimizer.ir import Layer, Masks, Model
from prumux.optimizer.module import KINDS, Branch, EncoderModule

READS = {"attention": ("query", "key", "value"), "ffn": ("up",)}


def superposed(model: Model, keys: Tensor, at: int) -> Model:
    """The model with n times the heads and units from layer `at` on; nothing is mixed yet.

    Args:
        model: of single rows; masks may be pending.
        keys: signs, [n, D].
        at: the layer before which rows will be mixed.
    """
    n, weights = len(keys), dict(model.weights)
    living = [b for b in EncoderModule(model).branches() if b.index >= at]
    for i, layer in enumerate(model.encoder.layers):
        for kind, size in zip(KINDS, (layer.heads, layer.ffn), strict=True):
            branch = Branch(i, kind)
            if i >= at and size:
                scale = n if branch in living[:1] else math.sqrt(n)
                weights |= _copies(model, branch, keys, scale)
    encoder, masks = model.encoder, model.masks
    layers = [Layer(n * x.heads, n * x.ffn) for x in encoder.layers[at:]]
    return replace(
        model,
        encoder=replace(encoder, layers=(*encoder.layers[:at], *layers)),
        weights=weights,
        masks=Masks(
            heads=(*masks.heads[:at], *(m.repeat(n) for m in masks.heads[at:])),
            ffn=(*masks.ffn[:at], *(m.repeat(n) for m in masks.ffn[at:])),
            hidden=masks.hidden,
        ),
    )


def _copies(model: Model, branch: Branch, keys: Tensor, scale: float) -> dict[str, Tensor]:
    """The weights of a block; what is added to every row is added once for each slot."""
    found, given, all_slots = dict[str, Tensor](), model.weights, keys.sum(0)
    for name in (f"{branch.name}.{x}" for x in READS[branch.kind]):
        read = given[f"{name}.weight"] * scale
        found[f"{name}.weight"] = torch.cat([read * k for k in keys])
        found[f"{name}.bias"] = given[f"{name}.bias"].repeat(len(keys))
    written = given[f"{branch.output}.weight"] / scale
    found[f"{branch.output}.weight"] = torch.cat([written * k[:, None] for k in keys], dim=1)
    found[f"{branch.output}.bias"] = given[f"{branch.output}.bias"] * all_slots / scale
    norm = f"{branch.name}.norm.bias"
    found[norm] = given[norm] * all_slots / math.sqrt(len(keys))
    return found
