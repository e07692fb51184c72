"""The loss budget: the allowed fall of the metric, in the user's notation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from prumux.optimizer.base.errors import UsageError

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*(%?)\s*(rel)?\s*")


@dataclass(frozen=True)
class Budget:
    """An allowed loss in percentage points, or relative to the given model's score.

    `share` is in [0, 1): 0.02 means 2 percentage points, or 2 % of the score if `relative`.

    Raises:
        UsageError: `share` is not in [0, 1).
    """

    share: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UsageError(
                f"a budget of {self.share} is not in [0, 1): for 2 points write 0.02"
            )

    @staticmethod
    def parse(text: str) -> Budget:
        """Read `2%` (percentage points) or `2%rel` (of the given model's score).

        Raises:
            UsageError: the text is not a percentage from 0% to below 100%. The message shows a
                corrected call.
        """
        found = _NUMBER.fullmatch(text)
        if found is None or (found[3] and not found[2]):
            raise UsageError(f"budget '{text}' is not a percentage: write, say, --budget 2%")
        number, unit, rel = Decimal(found[1]), found[2], found[3]
        if not unit:
            cure = f"write --budget {_plain(number)}%"
            if abs(number) < 1:  # either a share, as in Python, or percentage points
                cure = f"write --budget {_plain(100 * number)}% or --budget {_plain(number)}%"
            raise UsageError(f"budget '{text}' has no unit: {cure}")
        if not 0 <= number < 100:
            raise UsageError(
                f"budget '{text}' is {_plain(number)} %, allowed is 0 % to below 100 %: "
                f"write, say, --budget 2%{rel or ''}"
            )
        return Budget(share=float(number / 100), relative=rel is not None)

    def limit(self, dense_score: float) -> float:
        """The allowed loss in the metric's units, if the given model has this score."""
        return self.share * abs(dense_score) if self.relative else self.share

    def __str__(self) -> str:
        return f"{_plain(Decimal(repr(self.share)) * 100)}%{'rel' if self.relative else ''}"


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
