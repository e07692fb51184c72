"""Check the arguments of `Predictor.predict`: texts, pairs, words, and their owners."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sized
from typing import Any

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.data.rows import Rows


def _listed(texts: Any, example: str, call: str = "predict") -> list[Any]:
    """Convert the texts to a list. `example` is shown in the error message."""
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise UsageError(
            f"{call} takes a list, not a {type(texts).__name__}\ncall {call}({example})"
        )
    return list(texts)


def owners_of(isolate: Any, texts: Sized) -> tuple[Hashable, ...] | None:
    """The owner of each text, or None if `isolate` is None.

    Raises:
        UsageError: `isolate` is neither one name nor a list of names. A generator is refused:
            it would count as one name, and so put the texts of all owners together.
    """
    if isolate is None:
        return None
    if hasattr(isolate, "tolist"):  # NumPy, pandas
        isolate = isolate.tolist()
    if isinstance(isolate, Iterable) and not isinstance(isolate, str | bytes | list | tuple):
        raise UsageError(
            f"isolate is a {type(isolate).__name__}: give a list, isolate=list(...), "
            "or one name for all"
        )
    if isinstance(isolate, list | tuple):
        if len(isolate) != len(texts):
            raise UsageError(
                f"isolate names {len(isolate)} owners of {len(texts)} texts: "
                "give one for each, or one name for all"
            )
        owners = tuple(isolate)
    else:
        owners = (isolate,) * len(texts)
    for owner in owners:
        try:
            hash(owner)
            same = bool(owner == owner)  # noqa: PLR0124 - nan differs from itself
        except TypeError as error:  # unhashable, or pandas.NA, whose comparison raises
            raise UsageError(
                f"isolate holds {_short(owner)}: name owners by texts or numbers"
            ) from error
        if not same:
            raise UsageError(
                f"isolate holds {_short(owner)}, which is not equal to itself: "
                "name owners by texts or numbers"
            )
    return tuple((type(owner), owner) for owner in owners)  # with the type, 1 and True differ


def text_rows(texts: Any, call: str = "predict") -> Rows:
    """Convert texts, or pairs of texts, to rows.

    Raises:
        UsageError: a value is neither a text nor a pair, or single texts and pairs are given
            together. The message names the first such value.
    """
    text = texts if isinstance(texts, str) else "a text"
    values = _listed(texts, f"[{_short(text)}]", call)
    if _all_texts(values):
        return Rows(tuple(values))
    pairs = [_is_pair(x) for x in values]
    for i, (value, pair) in enumerate(zip(values, pairs, strict=True)):
        if not pair and not isinstance(value, str):
            raise UsageError(
                f"text {i} is {_short(value)}, a {type(value).__name__}; give a str or a pair "
                "of str\ncall predict(['a text']) or predict([('one text', 'another')])"
            )
        _check_unicode(i, value if pair else (value,))
        if pair != pairs[0]:
            raise UsageError(
                f"text 0 is a {'pair' if pairs[0] else 'str'}, text {i} is not: "
                "give either pairs or single texts in one call"
            )
    if values and pairs[0]:
        return Rows(tuple(str(a) for a, _ in values), tuple(str(b) for _, b in values))
    return Rows(tuple(str(x) for x in values))


def question_rows(texts: Any) -> Rows:
    """Convert questions with their contexts to rows of pairs.

    Raises:
        UsageError: a value is not a pair of texts.
    """
    values = _listed(texts, "[('a question', 'its context')]")
    for i, value in enumerate(values):
        if not _is_pair(value):
            raise UsageError(
                f"text {i} is {_short(value)}, a {type(value).__name__}; this model answers "
                "questions, so each must be a pair of a question and its context, both str\n"
                "call predict([('a question', 'its context')])"
            )
        _check_unicode(i, value)
    return Rows(tuple(str(q) for q, _ in values), tuple(str(c) for _, c in values))


def _all_texts(values: list[Any]) -> bool:
    """True if all values are plain Unicode texts. Fast, without a Python loop over values."""
    if set(map(type, values)) != {str}:
        return False
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_unicode(i: int, texts: Iterable[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"text {i} holds half of a surrogate pair at {error.start}, which is no text\n"
                "clean it: text.encode(errors='replace').decode()"
            ) from error


def word_rows(texts: Any) -> list[tuple[str, ...]]:
    """Convert lists of words to tuples.

    Raises:
        UsageError: a row is not a list of str; the message names the first one.
    """
    words = texts.split() if isinstance(texts, str) else ["some", "words"]
    values = _listed(texts, f"[{_short(words)}]")
    for i, row in enumerate(values):
        if not isinstance(row, list | tuple) or not all(isinstance(x, str) for x in row):
            raise UsageError(
                f"row {i} is {_short(row)}; this model tags words, so each row must be a list "
                "of str\ncall predict([['some', 'words'], ['more']])"
            )
        _check_unicode(i, row)
    return [tuple(map(str, row)) for row in values]


def _is_pair(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return len(value) == 2 and all(isinstance(x, str) for x in value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
