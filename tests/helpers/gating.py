"""A small model, random gates for it, and a cost table."""

from typing import Any

import torch
from torch import nn

from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.timing.cost_table import Block, CostTable, Curve
from prumux.passes.gates.gates import Gates
from prumux.passes.gates.hard_concrete import HIGH, LOW
from tests.helpers.factory import Family, random_model

SMALL: dict[str, Any] = {"heads": (4, 4, 4), "ffn": (16, 16, 16), "hidden": 16}


def small(family: Family = "bert", **fields: Any) -> Model:
    return random_model(family, **{**SMALL, **fields})


def some_gates(
    encoder: Encoder, seed: int, spread: float = 3.0, hidden: bool = False
) -> Gates:
    random = torch.Generator().manual_seed(seed)
    widths = (*(x.heads for x in encoder.layers), *(x.ffn for x in encoder.layers))

    def some(size: int) -> nn.Parameter:
        found = torch.randn(size, generator=random) * spread
        return nn.Parameter(found.clamp(LOW, HIGH))

    return Gates(
        widths,
        encoder.hidden,
        some(sum(widths)),
        some(len(widths)),
        some(encoder.hidden) if hidden else None,
    )


def table(pool_early: bool = True) -> CostTable:
    wide = Block(Curve((0, 1, 4), (0.0, 1.0, 3.0)), Curve((0, 1, 8, 16), (0.0, 2.0, 4.0, 9.0)))
    narrow = Block(Curve((0, 1, 4), (0.0, 0.5, 1.0)), Curve((0, 1, 16), (0.0, 0.2, 1.0)))
    return CostTable(40.0, 2.0, wide, narrow, 2 if pool_early else 3, 0.0)
