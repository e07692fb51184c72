"""Initial weights of multiplexing and demultiplexing."""

from __future__ import annotations

import torch
from torch import Tensor

from prumux.optimizer.model.families.registry import family_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import living
from prumux.optimizer.model.sizes import Encoder, Multiplexing
from prumux.optimizer.model.weights import expected_shapes

INITIAL_STD = 0.02


def slot_keys(mux: Multiplexing, hidden: int, random: torch.Generator) -> Tensor:
    """Draw the keys, [n, D], with mean square 1."""
    drawn = torch.randn(mux.n, hidden, generator=random)
    if mux.variant == "fixed":
        return drawn
    if mux.variant == "orthogonal":
        columns, _ = torch.linalg.qr(drawn.T)
        found: Tensor = columns.T.contiguous() * hidden**0.5
        return found
    signs = torch.where(drawn < 0, -1.0, 1.0)
    signs[0] = 1.0  # this key does not change the states of the first slot
    return signs


def added_weights(
    keys: Tensor, encoder: Encoder, model: Model, random: torch.Generator
) -> dict[str, Tensor]:
    """Initial values of all weights of mux and demux in `encoder`; see `initial`."""
    names = (k for k in expected_shapes(encoder) if k.startswith(("mux.", "demux.")))
    return {name: initial(name, keys, encoder, model, random) for name in names}


def initial(
    name: str, keys: Tensor, encoder: Encoder, model: Model, random: torch.Generator
) -> Tensor:
    """Initial value of one weight of mux or demux.

    At first, demultiplexing multiplies by the key a second time. If all entries of the key are
    signs, this undoes the first multiplication.
    """
    if name in ("mux.keys", "demux.scale"):
        return keys.clone()
    shape = expected_shapes(encoder)[name]
    if ".norm." in name:
        last = model.weights.get(f"{last_norm(model)}.{name.rpartition('.')[2]}")
        if last is None:  # a norm without a shift
            return torch.zeros(shape)
        return last.clone() if tuple(last.shape) == shape else torch.ones(shape)
    if len(shape) == 1 or name == "demux.shift":
        return torch.zeros(shape)
    return torch.randn(shape, generator=random) * INITIAL_STD


def last_norm(model: Model) -> str:
    """Name prefix of the norm whose output the head reads."""
    left = living(model)
    return family_of(model.encoder).read_norm(left[-1] if left else None)
