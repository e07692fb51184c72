"""Marks the least important FFN units for removal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from prumux.passes.pruning.keep_share import RankedPrune


@dataclass(frozen=True)
class PruneFfn(RankedPrune):
    """Mark the least important FFN units for removal."""

    name: ClassVar[str] = "prune-ffn"
    units: ClassVar[Literal["heads", "ffn"]] = "ffn"
