"""The field `vocabulary` of report.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .units import Bytes, Fraction, Positive


@dataclass(frozen=True)
class VocabularyRecord:
    """The tokenizer of a model that lost pieces, beside the given one."""

    pieces_dense: Annotated[
        Positive, "Pieces of the given tokenizer, special tokens included."
    ]
    pieces: Annotated[Positive, "Pieces of the shipped one."]
    tokenizer_bytes_dense: Annotated[Bytes, "Size of the given tokenizer.json, in bytes."]
    tokenizer_bytes: Annotated[Bytes, "Size of the shipped tokenizer.json, in bytes."]
    other_pieces_select: Annotated[
        Fraction, "Share of the select rows that have other pieces than before."
    ]
    other_pieces_certify: Annotated[Fraction, "The same of the certify rows."]
    other_pieces_test: Annotated[
        Fraction | None, "The same of the test rows, if there are any."
    ]
