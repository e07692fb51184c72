"""Reads JSON files of a model folder, and computes the digest of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from prumux.optimizer.base import git_lfs
from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.tasks.task import Task

from .sizes import Encoder

MOST_DEPTH = 64
"""Largest number of nested levels in a JSON file. tokenizer.json has about ten."""


def digest(weights: Mapping[str, Tensor], *about: Task | Encoder) -> str:
    """SHA-256 over `about`, and over names, shapes and bytes of the weights."""
    sha = hashlib.sha256(repr(about).encode())
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        sha.update(f"{name}{tuple(tensor.shape)}".encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ModelError: the file is missing or unreadable, is nested too deeply or not an object,
            or has a name with two values.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except FileNotFoundError as error:
        _refuse_folder(path, error)
    except (OSError, ValueError, RecursionError) as error:
        if git_lfs.is_pointer(path):
            raise ModelError(git_lfs.cure(path)) from error
        if "BOM" in str(error):
            raise ModelError(
                f"{path} begins with a byte order mark: save it as UTF-8 without one"
            ) from error
        raise ModelError(f"{path} cannot be read: {error}"[:300]) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}, not an object")
    if not _shallow(value):
        raise ModelError(f"{path} is nested too deeply: at most {MOST_DEPTH} levels are read")
    return value


def _shallow(value: object) -> bool:
    """True if a value has at most `MOST_DEPTH` levels. Messages can show such values."""
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        below = [x.values() if isinstance(x, dict) else x for x in level]
        level = [y for x in below for y in x if isinstance(y, dict | list)]
        if not level:
            return True
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs. A repeated name is an error, because readers disagree."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if repr(found[name]) != repr(value):
                raise ValueError(f"{name!r:.60} has two values; keep one")
    return found


def _refuse_folder(path: Path, error: Exception) -> NoReturn:
    """Raise an error that describes a folder without config.json."""
    folder = path.parent
    said = f"'{folder}' is not a model folder: it has no {path.name}"
    cure = "give a folder written by save_pretrained() or by prumux-opt"
    inner = [] if path.name != "config.json" else model_folders(folder)
    if (folder / "adapter_config.json").exists():
        said = f"'{folder}' holds a PEFT adapter (adapter_config.json), not a whole model"
        cure = (
            "merge it: model = peft_model.merge_and_unload(), then "
            "model.save_pretrained('merged')"
        )
    elif inner:
        said = f"'{folder}' has no config.json itself; its folders hold models"
        shown = ", ".join(str(folder / x) for x in inner[:4])
        cure = f"give one of them: {shown}" + (" ..." if inner[4:] else "")
    raise ModelError(f"{said}\n{cure}") from error


def model_folders(folder: Path) -> list[str]:
    """Subfolders with a model, such as the Trainer's `checkpoint-500`, by name and step."""
    try:
        found = [x.parent.name for x in folder.glob("*/config.json")]
    except OSError:
        return []
    return sorted(found, key=_step)


def _step(name: str) -> tuple[str, int, str]:
    stem, _, step = name.rpartition("-")
    return (stem, int(step), name) if step.isdecimal() and len(step) < 19 else (name, 0, name)
