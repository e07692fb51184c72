"""Which products suffer most from int8: measured one at a time, on the user's rows.

A few inputs have single values far from all others (what goes into an FFN's second map is
known for it). One scale then leaves little for the rest, and most of int8's error is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .ort import OrtEngine
from .qdq import only, quantized

Inputs = Mapping[str, NDArray[Any]]
SHARE = 0.75
"""Of int8's error. On SST-2 one product of 38 of a dense MiniLM-L6 made so much of it,
and eight of 32 of one pruned by 60 %."""


def errors(int8: onnx.ModelProto, rows: Sequence[Inputs], threads: int) -> dict[str, float]:
    """Mean squared change of the logits if one product alone is in int8, the worst first.

    Args:
        int8: what `quantize` gave.
        rows: inputs [B, T] by name, whole groups of rows.
        threads: CPU threads.
    """

    def logits(names: tuple[str, ...]) -> list[NDArray[Any]]:
        engine = OrtEngine(only(int8, names).SerializeToString(), threads)
        return [engine.run(x) for x in rows]

    exact = logits(())
    found = {}
    for name in quantized(int8):
        pairs = zip(logits((name,)), exact, strict=True)
        found[name] = float(np.mean([np.square(a - b).mean() for a, b in pairs]))
    return dict(sorted(found.items(), key=lambda x: -x[1]))


def sensitive(found: Mapping[str, float], share: float = SHARE) -> tuple[str, ...]:
    """The fewest products that make at least this share of the summed errors.

    Args:
        found: from `errors`.
        share: 0 = none, 1 = all that have an error.
    """
    left, kept = share * sum(found.values()), []
    for name, error in sorted(found.items(), key=lambda x: -x[1]):
        if left <= 1e-12:
            break
        kept.append(name)
        left -= error
    return tuple(kept)
