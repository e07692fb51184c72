"""`prune-heads`: mark the least important attention heads for removal.

Importance is the Fisher information of a factor that multiplies a unit's output, see
`pruning/importance.py` (Kwon et al., https://arxiv.org/abs/2204.09656). `prune` chooses heads
and FFN units together and is usually better. Use `prune-heads` to set the share of heads
yourself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from prumux.passes.pruning.keep_share import RankedPrune


@dataclass(frozen=True)
class PruneHeads(RankedPrune):
    """Mark the least important attention heads for removal.

    Example: `prune-heads{ratio=0.3},slice,reconstruct`
    """

    name: ClassVar[str] = "prune-heads"
    units: ClassVar[Literal["heads", "ffn"]] = "heads"
