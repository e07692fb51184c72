"""`prune-ffn`: mark the least important FFN units for removal.

Importance is the Fisher information of a factor that multiplies a unit's output, see
`pruning/importance.py` (Kwon et al., https://arxiv.org/abs/2204.09656). `prune` chooses heads
and FFN units together and is usually better. Use `prune-ffn` to set the share of FFN units
yourself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from prumux.passes.pruning.keep_share import RankedPrune


@dataclass(frozen=True)
class PruneFfn(RankedPrune):
    """Mark the least important FFN units for removal.

    Example: `prune-ffn{ratio=0.5 scope=layer},align,slice,reconstruct`
    """

    name: ClassVar[str] = "prune-ffn"
    units: ClassVar[Literal["heads", "ffn"]] = "ffn"
