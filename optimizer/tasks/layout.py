"""Rows that are scored but consist of several texts, which a model runs one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TextKind = Literal["text", "query", "document"]
"""The kind of a text, where a model has a prompt for each kind."""


@dataclass(frozen=True)
class Layout:
    """Pairs: texts 2i and 2i + 1 are row i. Queries: first all rows, then the documents."""

    kind: Literal["pairs", "queries"]
    rows: int
    own: tuple[int, ...] = ()
    """Of each query the document that is the query itself, -1 = none; it is never found."""
