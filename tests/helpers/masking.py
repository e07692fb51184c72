"""Random masks, and the logits that count."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.sizes import Encoder


def random_masks(
    encoder: Encoder, seed: int, *, keep: float = 0.6, hidden: bool = True, gone: float = 0.2
) -> Masks:
    """Units survive with chance `keep`, whole blocks go with chance `gone`.

    At least half of the hidden dimensions survive: a LayerNorm over one or two is ill-posed.
    """
    random = torch.Generator().manual_seed(seed)

    def block(size: int) -> Tensor:
        alive = torch.rand(size, generator=random) < keep
        return alive & bool(torch.rand(1, generator=random) >= gone)

    dims = torch.ones(encoder.hidden, dtype=torch.bool)
    if hidden:
        dropped = torch.randint(0, encoder.hidden // 2 + 1, (1,), generator=random)
        dims[torch.randperm(encoder.hidden, generator=random)[: int(dropped)]] = False
    return Masks(
        heads=tuple(block(x.heads) for x in encoder.layers),
        ffn=tuple(block(x.ffn) for x in encoder.layers),
        hidden=dims,
    )


def masked(model: Model, seed: int, **options: float) -> Model:
    """The model with random masks over heads, FFN units and whole blocks."""
    return replace(model, masks=random_masks(model.encoder, seed, hidden=False, **options))


def logits(model: Model, batch: Batch) -> Tensor:
    """Logits of the rows, for token tasks of the real positions."""
    found = torch.as_tensor(run(EncoderModule(model).eval(), batch.inputs()))
    return found if model.encoder.pooled else found[torch.as_tensor(batch.attention_mask) > 0]


def worst(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return float((a - b).abs().max())
