"""Rows of several texts that a model runs one by one: pairs, and queries with documents."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from prumux.optimizer.tasks.layout import Layout

if TYPE_CHECKING:
    from .rows import Rows


def layout_of(rows: Rows) -> Layout | None:
    """The layout of rows over the texts of `flattened`; None where each row is one text."""
    if rows.corpus is not None:
        return Layout("queries", len(rows), rows.own)
    return None if rows.text_b is None else Layout("pairs", len(rows))


def flattened(rows: Rows) -> Rows:
    """The texts one by one, without labels: pairs in turn, documents after queries."""
    texts = rows.text_a
    if rows.corpus is not None:
        texts = (*texts, *rows.corpus)
    elif rows.text_b is not None:
        texts = tuple(chain(*zip(texts, rows.text_b, strict=True)))
    return replace(rows, text_a=texts, text_b=None, corpus=None, own=(), labels=None)
