"""The usual names of splits and columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

SPLITS = {
    "train": ("train", "training"),
    "validation": (
        "validation", "valid", "val", "dev", "development", "eval", "evaluation",
    ),
    "test": ("test", "testing"),
}  # fmt: skip
"""The splits, each with its usual names in files, folders and hub data sets.

A name may end in `_matched` or `_mismatched`, as in MNLI, or in `-v1` or `-v2`, as in SQuAD.
"""
PAIRS = (
    ("text_a", "text_b"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "context"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text", "text_pair"),
    ("query", "passage"),
    ("query", "document"),
)
"""Usual names of two columns that contain a pair of texts."""
SINGLES = ("text", "sentence", "text_a")
"""Usual names of a column that contains the only text."""

WORDS = ("tokens", "words")
"""Usual names of a column of words."""

_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
_MATCHED = re.compile(r"_(mis)?matched$|_v[12]$")


def folded(name: str) -> str:
    """A name in lower case without surrounding blanks, for comparisons."""
    return name.strip("\ufeff \t\r\n").casefold()


def split_of(name: str) -> str | None:
    """The split with this usual name, in upper or lower case; None = no usual name."""
    plain = re.sub(r"[-. ]", "_", folded(name))
    return _SPLIT_OF.get(_MATCHED.sub("", plain))


def by_split(
    named: Mapping[str, str],
    settled: Collection[str],
    fail: Callable[[str, list[str]], NoReturn],
) -> tuple[dict[str, str], list[str]]:
    """Choose one title for each split; also give a line for each title that is not used.

    A name such as `validation_mismatched` is chosen only if its split has no other name.

    Args:
        named: maps a title, which messages show, to a name that may be a split's usual name.
        settled: splits for which the user gave a file.
        fail: raises the error for a split with several titles.
    """
    found: dict[str, list[str]] = {}
    lines = []
    for title, name in named.items():
        split = split_of(name)
        if split is None:
            lines.append(f"not used: {title}, which has no usual name of a split")
        elif split in settled:
            lines.append(f"not used: {title}, because --{split} names another file")
        else:
            found.setdefault(split, []).append(title)
    chosen = {}
    for split, titles in found.items():
        left = [x for x in titles if "mismatched" not in folded(named[x])] or titles
        if len(left) > 1:
            fail(split, left)
        chosen[split] = left[0]
        rest = [x for x in titles if x != left[0]]
        lines += [f"not used: {x}, because {left[0]} is the {split} split" for x in rest]
    return chosen, lines


def column_of(names: Sequence[str], usual: str) -> list[str]:
    """The columns with this name. Case is ignored unless one column has the exact spelling."""
    return [usual] if usual in names else [x for x in names if folded(x) == folded(usual)]


def stripped(names: Iterable[Any]) -> list[str]:
    """Column names without surrounding blanks and byte order marks."""
    return [str(x).strip("\ufeff \t\r\n") for x in names]


def twice(names: Sequence[str]) -> str | None:
    """The first name that occurs twice; None = all differ."""
    return next((x for x in names if names.count(x) > 1), None)
