"""Names of a data set's classes, as the `datasets` library writes them.

The library writes the names to one of these places: the schema of a parquet or arrow file,
`dataset_info.json`, `dataset_infos.json`, or the head of the data set's README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import DataError

from .names import folded, split_of

Names = dict[str, tuple[str, ...]]
"""Class names by column, in the order of the class ids."""
CARDS = ("dataset_info.json", "dataset_infos.json", "README.md")
_MOST_BYTES = 10_000_000
_KEYS = ("feature", "sequence", "list", "dtype", "class_label")
"""Keys under which a column's `names` may be nested."""


def class_names(metadata: bytes | None) -> Names:
    """Class names from the `huggingface` entry in the schema of a parquet or arrow file.

    The result is empty if the entry has another form than the `datasets` library gives it.
    """
    try:
        return _of_features(json.loads(metadata or b"{}")["info"]["features"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def beside(file: Path) -> Names:
    """Class names from the nearest file of `CARDS` beside or above a data file.

    The search goes up only from folders that are named `data` or have a split's name.

    Raises:
        DataError: the file of `CARDS` cannot be read, or two of its configurations name a
            column's classes differently.
    """
    folders = [file.parent]
    while folders[-1].name == "data" or split_of(folders[-1].name):
        folders.append(folders[-1].parent)
    for path in (folder / name for folder in folders for name in CARDS):
        if path.is_file() and path.stat().st_size <= _MOST_BYTES:
            found = _of_card(path)
            if found:
                return found
    return {}


def _of_card(path: Path) -> Names:
    found: Names = {}
    for features in _features_of(path):
        for column, names in _of_features(features).items():
            if found.setdefault(column, names) != names:
                raise DataError(
                    f"{path} names the classes of '{column}' differently for different "
                    "configurations: keep the entry of this data only"
                )
    return found


def _features_of(path: Path) -> Iterator[Any]:
    """The features of each configuration that a file describes."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        info = _front_matter(text) if path.suffix == ".md" else json.loads(text)
    except (OSError, ValueError, RecursionError) as e:
        raise DataError(
            f"{path} cannot be read ({str(e).splitlines()[0][:100]})\n"
            "mend it, or move it away if the data's classes need no names"
        ) from e
    if path.name == "dataset_infos.json" and isinstance(info, dict):
        info = list(info.values())
    for x in info if isinstance(info, list) else [info]:
        if isinstance(x, dict) and "features" in x:
            yield x["features"]


def _front_matter(text: str) -> Any:
    """The entry `dataset_info` of a README's YAML front matter; None = there is none."""
    import yaml

    lines = text.splitlines()
    if "---" not in lines[1:] or lines[0].strip() != "---":
        return None
    head = "\n".join(lines[1 : lines.index("---", 1)])
    if "dataset_info" not in head:
        return None
    try:
        found = yaml.safe_load(head)
    except yaml.YAMLError as e:
        raise ValueError(" ".join(str(e).split())) from e
    return found.get("dataset_info") if isinstance(found, dict) else None


def _of_features(features: Any) -> Names:
    """Class names from an object of columns (json), or a list of named columns (YAML)."""
    if isinstance(features, list):
        pairs = [(x.get("name"), x) for x in features if isinstance(x, dict)]
    elif isinstance(features, Mapping):
        pairs = list(features.items())
    else:
        return {}
    found = {k: _names_of(x) for k, x in pairs if isinstance(k, str)}
    return {folded(k): x for k, x in found.items() if x}


def _names_of(feature: Any) -> tuple[str, ...]:
    if isinstance(feature, list) and len(feature) == 1:
        return _names_of(feature[0])
    if not isinstance(feature, Mapping):
        return ()
    for key in _KEYS:
        if isinstance(feature.get(key), Mapping | list):
            return _names_of(feature[key])
    names = feature.get("names")
    if feature.get("_type", "ClassLabel") != "ClassLabel":
        return ()
    if isinstance(names, Mapping):  # YAML: id to name
        by_id = {str(k): x for k, x in names.items()}
        names = [by_id.get(str(i)) for i in range(len(by_id))]
    if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
        return ()
    return tuple(names)
