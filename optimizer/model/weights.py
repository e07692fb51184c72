"""Names, axes and shapes of every weight of an encoder. All other modules use this list."""

from __future__ import annotations

from functools import lru_cache

from .axes import HIDDEN, Weight, fixed, linear, norm
from .families.registry import family_of
from .families.sentence import head_weights
from .sizes import Branch, Encoder, Multiplexing


@lru_cache(maxsize=512)
def weights_of(encoder: Encoder) -> tuple[Weight, ...]:
    """All weights. Training checkpoints number weights in this order."""
    family = family_of(encoder)
    found = [*family.embeddings(encoder).weights]
    for branch in encoder.branches():
        found += family.branch_weights(encoder, branch)
    found += family.final_weights()
    if encoder.mux:
        found += _mux_weights(encoder.mux)
    return (*found, *head_weights(encoder))


@lru_cache(maxsize=512)
def weight_table(encoder: Encoder) -> dict[str, Weight]:
    """All weights by name."""
    return {x.name: x for x in weights_of(encoder)}


def expected_shapes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, for loader, verifier, slicer and exporter."""
    return {x.name: x.shape(encoder) for x in weights_of(encoder)}


def branch_parameters(encoder: Encoder, branch: Branch) -> tuple[int, int]:
    """Number of parameters of one head or FFN unit, and of the rest of the branch."""
    weights = family_of(encoder).branch_weights(encoder, branch)
    counts = [x.per_unit(encoder) for x in weights]
    return sum(a for a, _ in counts), sum(b for _, b in counts)


def _mux_weights(mux: Multiplexing) -> list[Weight]:
    found = [
        Weight(name, (fixed(mux.n), HIDDEN))
        for name in ("mux.keys", "demux.scale", "demux.shift")
    ]
    for i in range(mux.demux):
        at = f"demux.{i}"
        found += linear(f"{at}.up", HIDDEN, HIDDEN) + linear(f"{at}.down", HIDDEN, HIDDEN)
        found += norm(f"{at}.norm", HIDDEN)
    return found
