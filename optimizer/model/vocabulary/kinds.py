"""The kinds of tokenizer models that can lose pieces, and what each of them must keep.

Let K be the kept pieces. For each kind two facts hold.

1. *Same pieces*: a text that the whole vocabulary splits into pieces of K is split into the
   same pieces by K alone.
2. *Any text*: K gives no unknown piece where the whole vocabulary gives none.

========  ==================================================================================
kind      why
========  ==================================================================================
WordPiece 1: it takes the longest piece at each place. The longest one of all is in K, so it is
          the longest one of K. 2: K holds each character, alone and as a continuation.
BPE       1: it applies the merge of lowest rank. K keeps the order of the merges, and with
          each piece all that merge into it, so the lowest merge of all is still there.
          2: characters or bytes are looked up before any merge, and K holds all of them.
Unigram   1: it takes the path of the largest summed score. K has fewer paths, and that one.
          2: K holds each character; an unknown character costs the lowest score less 10, and K
          holds a piece of the lowest score.
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
"""A piece that stands for one byte where a character is unknown."""
_UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>|\S*NOTUSED")
"""Places that vocabularies keep free."""
Json = Mapping[str, Any]


class Vocabulary(ABC):
    """The pieces of a tokenizer: `model` of its tokenizer.json."""

    def __init__(self, model: Json, added: Collection[str]) -> None:
        self.model = model
        self.added = frozenset(added)
        """Texts of added tokens, which are found before the model sees a text."""

    @property
    @abstractmethod
    def pieces(self) -> list[tuple[int, str]]:
        """Ids and texts, by id."""

    @property
    def ordinary(self) -> list[tuple[int, str]]:
        """Ids and texts of pieces that texts are split into."""
        return [
            (i, x) for i, x in self.pieces if x not in self.added and not _UNUSED.fullmatch(x)
        ]

    @abstractmethod
    def smallest(self) -> Iterator[int]:
        """Ids that any text needs."""

    @abstractmethod
    def lacking(self) -> set[str]:
        """Characters of pieces that are no pieces themselves, so that no piece may go."""

    def fault(self) -> str:
        """Why no piece may go; "" if some may."""
        found = sorted(self.lacking())
        if not found:
            return ""
        more = f" and {len(found) - 5} more" if found[5:] else ""
        return (
            f"the vocabulary has no piece for {', '.join(map(repr, found[:5]))}{more} alone, "
            "so texts with it might become unknown"
        )

    def with_parts(self, kept: Iterable[int]) -> set[int]:
        """The pieces and all that are needed to make them."""
        return set(kept)

    @abstractmethod
    def cut(self, new: Mapping[int, int]) -> dict[str, Any]:
        """`model` with the pieces of `new` only: from an old id to a new one."""


class WordPiece(Vocabulary):
    """BERT's: the longest piece at each place of a word."""

    @property
    def pieces(self) -> list[tuple[int, str]]:
        """See `Vocabulary`."""
        return sorted((i, x) for x, i in self.model["vocab"].items())

    @property
    def _mark(self) -> str:
        return str(self.model["continuing_subword_prefix"])

    def smallest(self) -> Iterator[int]:
        """Characters, alone and as continuations, and the unknown piece."""
        for i, x in self.pieces:
            if len(x) == 1 or self._is_continued(x) or x == self.model["unk_token"]:
                yield i

    def _is_continued(self, piece: str) -> bool:
        return piece.startswith(self._mark) and len(piece) == len(self._mark) + 1

    def lacking(self) -> set[str]:
        """First characters of pieces that are none, and others that are no continuations."""
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
    def pieces(self) -> list[tuple[int, str]]:
        """See `Vocabulary`."""
        return sorted((i, x) for x, i in self.model["vocab"].items())

    @property
    def merges(self) -> list[tuple[str, str, str]]:
        """Left part, right part and result, by rank."""
        mark = self.model.get("continuing_subword_prefix") or ""
        pairs = [x.split(" ") if isinstance(x, str) else x for x in self.model["merges"]]
        return [(a, b, a + b.removeprefix(mark)) for a, b in pairs]

    def smallest(self) -> Iterator[int]:
        """All symbols that no merge makes, and the unknown piece."""
        made = {x for _, _, x in self.merges}
        for i, x in self.pieces:
            if x not in made or len(self._bare(x)) == 1:
                yield i

    def _bare(self, piece: str) -> str:
        found = piece.removeprefix(self.model.get("continuing_subword_prefix") or "")
        return found.removesuffix(self.model.get("end_of_word_suffix") or "")

    def lacking(self) -> set[str]:
        """None: each text begins as symbols of the vocabulary, which all stay."""
        return set()

    def fault(self) -> str:
        """Dropout draws merges at random."""
        return "its merges are drawn at random (dropout)" if self.model.get("dropout") else ""

    def with_parts(self, kept: Iterable[int]) -> set[int]:
        """The pieces, and both parts of every merge that makes one of them."""
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
        """See `Vocabulary`; a merge stays if its parts and its result do."""
        vocab = {x: new[i] for i, x in self.pieces if i in new}
        merges = [[a, b] for a, b, made in self.merges if {a, b, made} <= vocab.keys()]
        return {**self.model, "vocab": vocab, "merges": merges}


class Unigram(Vocabulary):
    """The one of sentencepiece: pieces with scores."""

    @property
    def pieces(self) -> list[tuple[int, str]]:
        """See `Vocabulary`."""
        return [(i, x) for i, (x, _) in enumerate(self.model["vocab"])]

    def smallest(self) -> Iterator[int]:
        """Characters, bytes, the unknown piece, one of the lowest score, and repeated ones."""
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
        """Characters of pieces that are no pieces."""
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
    """The vocabulary of a tokenizer.json; None for other kinds."""
    model = backend["model"]
    kind = KINDS.get(str(model.get("type")))
    added = [str(x["content"]) for x in backend.get("added_tokens") or ()]
    return None if kind is None else kind(model, added)
