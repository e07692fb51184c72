"""Read data sets of the Hugging Face hub, with the `datasets` library."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from prumux.optimizer.base.errors import DataError, MissingError
from prumux.optimizer.base.paths import hub_cure

from .formats import ending_of
from .names import by_split, folded
from .table import Table

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")


def is_hub_id(text: str) -> bool:
    """True for `owner/name` and `owner/name:config`.

    A bare name is more likely a misspelt folder.
    """
    return _HUB_ID.fullmatch(text) is not None and not ending_of(Path(text))


def hub_splits(
    source: str, settled: Collection[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The splits of a hub data set by name, and a line for each that is not used.

    The splits for training, validation and test are renamed to `train`, `validation` and
    `test`. All other splits keep their names.

    Args:
        source: `owner/name` or `owner/name:config`.
        settled: splits for which the user gave files.

    Raises:
        DataError: the look-up failed, or two splits both have a usual name of the same split.
        MissingError: the `datasets` library is not installed.
    """
    try:
        import datasets
    except ImportError as e:
        raise MissingError(
            f"'{source}' is no file or folder here, and reading it as a hub data set needs "
            "the datasets library: pip install 'prumux[hub]'"
        ) from e
    name, _, config = source.partition(":")
    try:
        found = datasets.load_dataset(name, config or None)
    # Errors of the hub, of the network and of a broken data set have the same remedy.
    except Exception as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise DataError(
            f"'{source}' is no file or folder here, and the hub look-up failed: {reason}\n"
            + hub_cure(e, "give a folder (--data DIR), or owner/name:config")
        ) from e

    def fail(split: str, names: list[str]) -> NoReturn:
        raise DataError(
            f"'{source}' has both {names[0]} and {names[1]}, either may be the {split} split\n"
            f"save the right one as a file: --{split} FILE"
        )

    titles = {f"{source} {x}": x for x in found}
    chosen, lines = by_split(titles, settled, fail)
    names = {titles[title]: split for split, title in chosen.items()}
    return {names.get(k, k): v for k, v in found.items()}, tuple(lines)


def hub_table(title: str, split: Any, wanted: set[str]) -> Table:
    """Read one split of `hub_splits`."""
    usual = {folded(x) for x in wanted}
    columns = {x: list(split[x]) for x in split.column_names if folded(x) in usual}
    classes = {}
    for name in columns:
        feature = split.features[name]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            classes[name] = tuple(names)
    return Table(((title, len(split)),), tuple(split.column_names), columns, classes)
