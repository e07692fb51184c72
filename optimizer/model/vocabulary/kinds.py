"""The kinds of tokenizer models from which pieces can be removed, and the pieces they need.

Let K be the set of kept pieces. Every kind has two properties.

1. *Same pieces*: if the whole vocabulary splits a text into pieces of K, then K alone splits
   the text into the same pieces.
2. *Any text*: K gives an unknown piece only where the whole vocabulary gives an unknown piece.

========  ==================================================================================
kind      reasons
========  ==================================================================================
WordPiece 1: The longest matching piece is chosen at each position. If the longest piece of the
          whole vocabulary is in K, it is also the longest piece of K.
          2: K contains each character, alone and as a continuation.
BPE       1: The merge with the lowest rank is applied first. K keeps the order of merges. With
          each piece, K keeps all parts that are merged into it, so no needed merge is missing.
          2: Characters or bytes are looked up before any merge, and K contains all of them.
Unigram   1: The path with the largest summed score is chosen. K has fewer paths, and the best
          path of the whole vocabulary is among them.
          2: K contains each character. An unknown character costs the lowest score minus 10,
          and K contains a piece with the lowest score.
========  ==================================================================================

WordPiece: Wu et al. 2016, https://arxiv.org/abs/1609.08144; BPE: Sennrich et al. 2016,
https://arxiv.org/abs/1508.07909; Unigram: Kudo 2018, https://arxiv.org/abs/1804.10959.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A piece for one byte of an unknown character."""
_UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>|\S*NOTUSED")
"""Reserved pieces of vocabularies."""
Json = Mapping[str, Any]


class Vocabulary(ABC):
    """The pieces of a tokenizer, from the key `model` of tokenizer.json."""

    def __init__(self, model: Json, added: Collection[str]) -> None:
        self.model = model
        self.added = frozenset(added)
        """Texts of added tokens. They are matched before the tokenizer model splits a text."""

    @property
    def pieces(self) -> list[tuple[int, str]]:
        """Ids and texts of all pieces, sorted by id.

        This implementation expects a `vocab` that maps texts to ids; `Unigram` overrides it.
        """
        return sorted((i, x) for x, i in self.model["vocab"].items())

    @property
    def ordinary(self) -> list[tuple[int, str]]:
        """Ids and texts of ordinary pieces: neither added tokens nor reserved pieces."""
        return [
            (i, x) for i, x in self.pieces if x not in self.added and not _UNUSED.fullmatch(x)
        ]

    @abstractmethod
    def smallest(self) -> Iterator[int]:
        """Ids that must be kept for any text."""

    @abstractmethod
    def lacking(self) -> set[str]:
        """Characters of pieces that are not pieces themselves. They prevent any removal."""

    def fault(self) -> str:
        """The reason why no piece can be removed; "" if pieces can be removed."""
        found = sorted(self.lacking())
        if not found:
            return ""
        more = f" and {len(found) - 5} more" if found[5:] else ""
        return (
            f"the vocabulary has no piece for {', '.join(map(repr, found[:5]))}{more} alone, "
            "so texts with it might become unknown"
        )

    def with_parts(self, kept: Iterable[int]) -> set[int]:
        """The given pieces, and all pieces from which they are merged."""
        return set(kept)

    @abstractmethod
    def cut(self, new: Mapping[int, int]) -> dict[str, Any]:
        """`model` with only the pieces of `new`, a map from old to new ids."""


class WordPiece(Vocabulary):
    """BERT's vocabulary: the longest matching piece at each position of a word."""

    @property
    def _mark(self) -> str:
        return str(self.model["continuing_subword_prefix"])

    def smallest(self) -> Iterator[int]:
        """Single characters, alone and as continuations, and the unknown piece."""
        for i, x in self.pieces:
            if len(x) == 1 or self._is_continued(x) or x == self.model["unk_token"]:
                yield i

    def _is_continued(self, piece: str) -> bool:
        return piece.startswith(self._mark) and len(piece) == len(self._mark) + 1

    def lacking(self) -> set[str]:
        """First characters that are not pieces, and later ones that are not continuations."""
        mark, known = self._mark, self.model["vocab"]
        found: set[str] = set()
        for _, x in self.ordinary:
            first = not mark or not x.startswith(mark) or x == mark
            inner = x[1:] if first else x.removeprefix(mark)
            found |= {mark + c for c in inner} | ({x[0]} if first and x else set())
        return {x for x in found if x not in known}

    def cut(self, new: Mapping[int, int]) -> dict[str, Any]:
        """See `Vocabulary`."""
        vocab = {x: new[i] for i, x in self.pieces if i in new}
        return {**self.model, "vocab": vocab}


class BytePairs(Vocabulary):
    """BPE, over bytes or characters."""

    @property
    def merges(self) -> list[tuple[str, str, str]]:
        """Left part, right part and result of each merge, by rank."""
        mark = self.model.get("continuing_subword_prefix") or ""
        pairs = [x.split(" ") if isinstance(x, str) else x for x in self.model["merges"]]
        return [(a, b, a + b.removeprefix(mark)) for a, b in pairs]

    def smallest(self) -> Iterator[int]:
        """Single characters, and symbols that no merge makes, such as the unknown piece."""
        made = {x for _, _, x in self.merges}
        for i, x in self.pieces:
            if x not in made or len(self._bare(x)) == 1:
                yield i

    def _bare(self, piece: str) -> str:
        found = piece.removeprefix(self.model.get("continuing_subword_prefix") or "")
        return found.removesuffix(self.model.get("end_of_word_suffix") or "")

    def lacking(self) -> set[str]:
        """The empty set: texts are first split into symbols, and all symbols are kept."""
        return set()

    def fault(self) -> str:
        """See `Vocabulary`. With BPE dropout no piece can be removed: merges are random."""
        return "its merges are drawn at random (dropout)" if self.model.get("dropout") else ""

    def with_parts(self, kept: Iterable[int]) -> set[int]:
        """The pieces and, recursively, both parts of every merge that makes one of them."""
        parts: dict[str, list[str]] = {}
        for a, b, made in self.merges:
            parts.setdefault(made, []).extend((a, b))
        texts, known = dict(self.pieces), self.model["vocab"]
        todo, found = list(kept), set(kept)
        while todo:
            more = {known[x] for x in parts.get(texts.get(todo.pop(), ""), ())} - found
            found |= more
            todo += more
        return found

    def cut(self, new: Mapping[int, int]) -> dict[str, Any]:
        """See `Vocabulary`. A merge is kept if its parts and its result are kept."""
        vocab = {x: new[i] for i, x in self.pieces if i in new}
        merges = [[a, b] for a, b, made in self.merges if {a, b, made} <= vocab.keys()]
        return {**self.model, "vocab": vocab, "merges": merges}


class Unigram(Vocabulary):
    """The Unigram vocabulary of sentencepiece: pieces with scores."""

    @property
    def pieces(self) -> list[tuple[int, str]]:
        """See `Vocabulary`."""
        return [(i, x) for i, (x, _) in enumerate(self.model["vocab"])]

    def smallest(self) -> Iterator[int]:
        """Characters, bytes, repeated texts, one lowest-score piece and the unknown piece."""
        scores = [score for _, score in self.model["vocab"]]
        count: dict[str, int] = {}
        for _, x in self.pieces:
            count[x] = count.get(x, 0) + 1
        yield from (i for i, x in self.pieces if len(x) == 1 or count[x] > 1)
        yield from (i for i, x in self.pieces if _BYTE.fullmatch(x))
        yield scores.index(min(scores))
        if self.model.get("unk_id") is not None:
            yield int(self.model["unk_id"])

    def lacking(self) -> set[str]:
        """Characters of pieces that are no pieces themselves."""
        ordinary = [x for _, x in self.ordinary if not _BYTE.fullmatch(x)]
        return {c for x in ordinary for c in x} - {x for _, x in self.pieces}

    def cut(self, new: Mapping[int, int]) -> dict[str, Any]:
        """See `Vocabulary`."""
        given, unknown = self.model["vocab"], self.model.get("unk_id")
        kept = [given[i] for i in sorted(new) if i < len(given)]
        return {
            **self.model,
            "vocab": kept,
            "unk_id": None if unknown is None else new[int(unknown)],
        }


KINDS: Mapping[str, type[Vocabulary]] = {
    "WordPiece": WordPiece,
    "BPE": BytePairs,
    "Unigram": Unigram,
}


def vocabulary_of(backend: Json) -> Vocabulary | None:
    """The vocabulary of a tokenizer.json; None for kinds that are not in `KINDS`."""
    model = backend["model"]
    kind = KINDS.get(str(model.get("type")))
    added = [str(x["content"]) for x in backend.get("added_tokens") or ()]
    return None if kind is None else kind(model, added)
