"""Find the files of each split in a folder, and the files that are not used."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, NoReturn

from prumux.optimizer.base.errors import DataError

from .class_names import CARDS
from .formats import FORMATS, ending_of
from .names import by_split, split_of

NO_DATA = (*CARDS, "labels.json", "state.json", "dataset_dict.json")
"""Files without rows that may lie in a folder with data."""
_CODE = (
    ".py",
    ".sh",
    ".md",
    ".ipynb",
    ".log",
    ".bin",
    ".pt",
    ".toml",
    ".yaml",
    ".yml",
    ".cfg",
)
"""Endings of files that contain no rows, even if their name is usual for data."""

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")
Found = dict[str, tuple[Path, ...]]


class FileSet(NamedTuple):
    """Files that belong together: one file, all its shards, or the files of a folder."""

    name: str
    """The part of the file or folder name that is checked for the name of a split."""
    paths: tuple[Path, ...]
    shards: int = 0
    """Number of shards; 0 = the file is not cut into numbered shards."""

    @property
    def title(self) -> str:
        """The name of the set in messages: its first file."""
        return str(self.paths[0])


def find_files(folder: Path, settled: Collection[str] = ()) -> Found:
    """Find the files of each split in a folder: one file, its shards, or a folder of files.

    The search looks for usual names of splits (see `names.SPLITS`) in `folder` and
    `folder/data`, and for folders written by `datasets.save_to_disk`.

    Args:
        folder: the folder to search.
        settled: splits that are not searched, because the user gave their files.

    Raises:
        DataError: there is no such folder, a split has two files, or a shard is missing.
    """
    return _find(folder, settled)[0]


def unused_files(folder: Path, settled: Collection[str] = ()) -> list[str]:
    """A line for each file that looks like data and that `find_files` does not return."""
    found, lines = _find(folder, settled)
    used = {x for paths in found.values() for x in paths}
    model = (folder / "config.json").is_file()
    known = ", ".join(FORMATS)
    for path in _entries(folder):
        if path.is_dir() or path in used or _split_name(path) or path.name in NO_DATA:
            continue
        code = path.suffix.lower() in _CODE
        if split_of(path.name.partition(".")[0]) and not ending_of(path) and not code:
            lines.append(f"not used: {path}, whose ending is none of {known}")
        elif ending_of(path) and not (model and ending_of(path) == ".json"):
            lines.append(f"not used: {path}, which has no usual name of a split")
    return lines


def _find(folder: Path, settled: Collection[str]) -> tuple[Found, list[str]]:
    """Files by split, and a line for each set of files that is not used."""
    if not folder.is_dir():
        cure = "give one that holds train.*, validation.*"
        if folder.is_file():
            cure = f"say what its rows are: --validation {folder}, or --train {folder}"
        raise DataError(f"{folder} is not a folder: {cure}")
    if (folder / "state.json").is_file():
        saved = _saved(folder)
        sets = [] if saved is None else [saved]
    else:
        sets = _sets(folder)
    by_title = {x.title: x for x in sets}

    def fail(split: str, titles: list[str]) -> NoReturn:
        first, second = (Path(x).relative_to(folder) for x in titles[:2])
        raise DataError(
            f"{folder} holds both {first} and {second}: "
            f"keep one, or name it with --{split} {titles[0]}"
        )

    named = {title: x.name for title, x in by_title.items()}
    found, lines = by_split(named, settled, fail)
    for split, title in found.items():
        there, needed = len(by_title[title].paths), by_title[title].shards
        if there < needed:
            raise DataError(
                f"{folder}: {there} of {needed} shards of '{split}' are there: "
                "fetch the others"
            )
    return {split: by_title[title].paths for split, title in found.items()}, lines


def _entries(folder: Path) -> list[Path]:
    return sorted([*folder.iterdir(), *folder.glob("data/*")])


def _split_name(path: Path) -> str | None:
    """The part of a file's name that is a usual name of a split; None = there is none."""
    stem = path.name.partition(".")[0]
    shard = _SHARD.fullmatch(stem)
    name = stem if shard is None else shard[1]
    return name if ending_of(path) and split_of(name) else None


def _sets(folder: Path) -> list[FileSet]:
    """All sets of files with a usual name of a split, in order of their names."""
    sets = []
    shards: dict[tuple[str, ...], list[Path]] = {}
    for path in _entries(folder):
        if path.is_dir():
            # A model's folder may have a folder `eval` with results of its training.
            data = split_of(path.name) and not (folder / "config.json").is_file()
            sets += _folder_sets(path) if data else []
            continue
        name = _split_name(path)
        if name is None:
            continue
        if not path.exists():
            raise DataError(f"{path} is a link to a file that is not there: fetch it")
        shard = _SHARD.fullmatch(path.name.partition(".")[0])
        if shard is None:
            sets.append(FileSet(name, (path,)))
        else:
            kind = (str(path.parent), name, shard[3], ending_of(path))
            shards.setdefault(kind, []).append(path)
    sets += [FileSet(k[1], tuple(x), int(k[2])) for k, x in shards.items()]
    return sorted(sets, key=lambda x: x.paths)


def _folder_sets(folder: Path) -> list[FileSet]:
    """The sets of files in a folder that is named like a split."""
    if (folder / "state.json").is_file():
        saved = _saved(folder)
        return [] if saved is None else [saved._replace(name=folder.name)]
    kinds: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and ending_of(path) and path.name not in NO_DATA:
            kinds.setdefault(ending_of(path), []).append(path)
    found = []
    for paths in kinds.values():
        shard = _SHARD.fullmatch(paths[0].name.partition(".")[0])
        found.append(FileSet(folder.name, tuple(paths), int(shard[3]) if shard else 0))
    return found


def _saved(folder: Path) -> FileSet | None:
    """The files that are listed in the state.json of `Dataset.save_to_disk`."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        names = [str(x["filename"]) for x in state["_data_files"]]
        split = state.get("_split") or "train"
        moved = state.get("_indices_data_files")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise DataError(
            f"{path} is not as datasets' save_to_disk writes it: save the data again, "
            "or as parquet files train.parquet and validation.parquet"
        ) from e
    if moved:
        raise DataError(
            f"{folder} holds rows in another order than their files (indices): call "
            "flatten_indices() before save_to_disk"
        )
    there = {x.name for x in folder.iterdir()}
    for name in names:
        if name not in there:
            raise DataError(f"{path} names {name:.80}, which is not there: copy it too")
    files = [folder / x for x in names]
    if not isinstance(split, str) or split_of(split) is None:
        split = "train"
    return FileSet(split, tuple(files)) if files else None
