"""SQuAD's exact match and F1 of answers, and the encoding of answers as numbers.

SQuAD: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250. Questions without an answer:
Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
NOWHERE = -1
"""Start and end of a missing answer."""


class FoundAnswer(NamedTuple):
    """An answer and its position in the context, as character indices."""

    start: int
    end: int
    text: str
    """The text of the answer, see `normalised`."""


NO_ANSWER = FoundAnswer(NOWHERE, NOWHERE, "")


def normalised(text: str) -> str:
    """The text in lower case, without punctuation, articles and extra white space.

    Example:
        >>> normalised("The  Norman-Conquest.")
        'normanconquest'
    """
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(found: str, aims: Sequence[str]) -> float:
    """1 if a normalised answer is among the right answers, else 0."""
    return float(found in aims)


def f1(found: str, aims: Sequence[str]) -> float:
    """The largest F1 between the words of a normalised answer and of one of the right answers.

    F1 = 2 p r / (p + r). Precision p is the share of the answer's words that are in the right
    answer. Recall r is the share of the right answer's words that are in the answer. If both
    have no words, F1 is 1. If only one has no words, F1 is 0.
    """
    return max(_f1(found.split(), aim.split()) for aim in aims)


def _f1(found: list[str], aim: list[str]) -> float:
    if not found or not aim:
        return float(found == aim)
    both = sum((Counter(found) & Counter(aim)).values())
    return 2 * both / (len(found) + len(aim))


def as_numbers(answers: Iterable[FoundAnswer]) -> NDArray[np.int64]:
    """Encode answers as numbers. For each: start, end, number of characters, characters."""
    flat: list[int] = []
    for x in answers:
        flat += [x.start, x.end, len(x.text), *map(ord, x.text)]
    return np.array(flat, dtype=np.int64)


def from_numbers(numbers: NDArray[Any]) -> list[FoundAnswer]:
    """Decode answers; the inverse of `as_numbers`."""
    flat, at = numbers.tolist(), 0
    found = []
    while at < len(flat):
        start, end, length = flat[at : at + 3]
        text = "".join(map(chr, flat[at + 3 : at + 3 + length]))
        found.append(FoundAnswer(start, end, text))
        at += 3 + length
    return found


def texts_of(answers: Iterable[NDArray[Any]]) -> list[list[str]]:
    """The normalised texts of the answers to each question; one empty text if there are none.

    Answers that consist only of articles and punctuation are dropped if others are left.
    """
    texts = [[x.text for x in from_numbers(numbers)] for numbers in answers]
    return [[y for y in x if y] or [""] for x in texts]


def read_answers(value: Any) -> list[tuple[str, int]] | None:
    """Texts and starts in a value of SQuAD's column `answers`; None for any other value.

    A value is `{"text": [...], "answer_start": [...]}`, or a list of objects with one text and
    one start each. A start may be a float such as 8.0, because some tools write all numbers
    this way.
    """
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        if not isinstance(texts, list) or not isinstance(starts, list):
            return None
    elif isinstance(value, list) and all(isinstance(x, dict) for x in value):
        texts = [x.get("text") for x in value]
        starts = [x.get("answer_start") for x in value]
    else:
        return None
    starts = [int(x) if isinstance(x, float) and x.is_integer() else x for x in starts]
    whole = all(isinstance(x, int) and not isinstance(x, bool) for x in starts)
    if len(texts) != len(starts) or not whole or not all(isinstance(x, str) for x in texts):
        return None
    return list(zip(texts, starts, strict=True))
