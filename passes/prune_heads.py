"""Marks the least important attention heads for removal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from prumux.passes.pruning.keep_share import RankedPrune


@dataclass(frozen=True)
class PruneHeads(RankedPrune):
    """Mark the least important attention heads for removal."""

    name: ClassVar[str] = "prune-heads"
    units: ClassVar[Literal["heads", "ffn"]] = "heads"
