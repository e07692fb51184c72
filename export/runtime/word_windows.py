"""Logits for every word of a token task, for rows of any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.row_groups import RowLogits
from prumux.optimizer.tasks.labels import IGNORE

Floats = NDArray[np.float32]
RunRows = Callable[[Rows, Sequence[int]], tuple[Encoded, RowLogits]]
"""Tokenises and runs rows of words. The second argument has the index of each row's text.
Returns the token ids, and logits [T, C] of each row."""


@dataclass(frozen=True)
class WordWindows:
    """Splits rows of words into windows that fit the model, and joins their logits."""

    run: RunRows
    positions: int
    """Largest number of tokens of a window."""
    labels: int
    unknown: str
    """The tokenizer's unknown token."""

    def logits(self, rows: Sequence[tuple[str, ...]]) -> list[Floats]:
        """Compute logits [words, C] of each row.

        Words such as '' or a zero-width space have no tokens. They run as the unknown token.

        Raises:
            UsageError: a word has no tokens and the tokenizer has no unknown token.
        """
        found, covered = self._windows(rows, range(len(rows)))
        blank = [i for i, x in enumerate(covered) if not x.all()]
        if not blank:
            return found
        filled = [
            tuple(w if c else self.unknown for w, c in zip(rows[i], covered[i], strict=True))
            for i in blank
        ]
        again, now_covered = self._windows(filled, blank)
        for i, logits, known in zip(blank, again, now_covered, strict=True):
            if not known.all():
                at = int(np.flatnonzero(~known)[0])
                raise UsageError(
                    f"row {i}: word {at} ({rows[i][at]!r}) has no tokens in this model's "
                    "vocabulary: remove it"
                )
            found[i][~covered[i]] = logits[~covered[i]]
        return found

    def _windows(
        self, rows: Sequence[tuple[str, ...]], texts: Sequence[int]
    ) -> tuple[list[Floats], list[NDArray[np.bool_]]]:
        """Logits [words, C] of each row, and a mask [words] of words with tokens.

        Each turn of the loop runs one window of every row that has words left.
        """
        found = [np.zeros((len(row), self.labels), np.float32) for row in rows]
        covered = [np.zeros(len(row), np.bool_) for row in rows]
        pending = [(i, 0) for i, row in enumerate(rows) if row]
        while pending:
            words = tuple(rows[i][at : at + self.positions] for i, at in pending)
            # The label of a word is its index, and `encode` puts it on the word's first token.
            indices = tuple(np.arange(len(x)) for x in words)
            encoded, logits = self.run(
                Rows((), words=words, labels=indices), [texts[i] for i, _ in pending]
            )
            left = []
            for j, (i, start) in enumerate(pending):
                places = np.asarray(encoded.labels[j])  # type: ignore[index]
                first = places != IGNORE
                here = start + places[first]
                found[i][here] = logits[j][first]
                covered[i][here] = True
                after = int(here[-1]) + 1 if len(here) else start + len(words[j])
                if after < len(rows[i]):
                    left.append((i, after))
            pending = left
        return found, covered
