"""A store of finished steps on disk. A killed run continues from it.

An entry is written to a temporary file, flushed and renamed, so no entry is half-written. Its
key is a digest of everything that the step depends on, including library versions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def key(*parts: object) -> str:
    """A digest of the parts' texts that is safe in a file name."""
    return hashlib.sha256("\x00".join(str(part) for part in parts).encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's contents; an empty text if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically: no reader ever sees a half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # frees space on a full disk
        raise


def owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to contiguous memory that torch allocates.

    Tensors in a memory-mapped file are not aligned. Sums over them differ in the last bit, so
    a resumed run or a worker would give a different model.
    """
    return {k: x.clone(memory_format=torch.contiguous_format) for k, x in tensors.items()}


@dataclass(frozen=True)
class Store:
    """Stores JSON values and tensors by name in `folder`; stores nothing without a folder."""

    folder: Path | None = None

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value stored under `name`. A missing value is made by `make` and stored."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        data = json.dumps(make())
        write_atomic(path, data.encode())
        return json.loads(data)  # later runs read lists, not tuples

    def tensors(
        self, name: str, make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The tensors stored under `name`. Missing tensors are made by `make` and stored."""
        from safetensors.torch import load_file, save

        if self.folder is None:
            return make()
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            return owned(load_file(path))
        value = owned(make())  # safetensors also refuses tensors that share storage
        write_atomic(path, save(value))
        return value

    def save(self, name: str, value: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a checkpoint of tensors and JSON facts over the last one of this name."""
        from safetensors.torch import save

        if self.folder is not None:
            held = {k: v.contiguous() for k, v in value.items()}
            data = save(held, metadata={"facts": json.dumps(facts)})
            write_atomic(self.folder / f"{name}.checkpoint", data)

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint of this name; None if it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        if self.folder is None or not (path := self.folder / f"{name}.checkpoint").exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                held = owned({k: file.get_tensor(k) for k in names})
                return held, json.loads(file.metadata()["facts"])
        except (SafetensorError, ValueError):
            return None

    def drop(self) -> None:
        """Remove all checkpoints. Call it once the trained model is stored."""
        if self.folder is not None:
            for path in self.folder.glob("*.checkpoint"):
                path.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """The files of all entries, sorted by name."""
        if self.folder is None or not self.folder.is_dir():
            return []
        return sorted(x for x in self.folder.iterdir() if x.is_file())

    def add(self, file: str, data: bytes) -> None:
        """Add an entry from another store under its file name. An existing entry is kept."""
        if self.folder is not None and not (path := self.folder / file).exists():
            write_atomic(path, data)

    def has(self, name: str) -> bool:
        """True if a JSON value or tensors are stored under `name`."""
        return self.folder is not None and any(
            (self.folder / f"{name}.{kind}").exists() for kind in ("json", "safetensors")
        )


@dataclass(frozen=True)
class Cache(Store):
    """A store that ignores read and write errors, for example if HOME is read-only."""

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """`Store.json` without errors of files.

        An unreadable entry is computed again. A value that cannot be written is not stored.
        """
        if self.folder is not None:
            with suppress(OSError, ValueError):
                return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        data = json.dumps(make())
        self.write(f"{name}.json", data.encode())
        return json.loads(data)

    def read(self, file: str) -> bytes:
        """The contents of a file; empty if the file cannot be read."""
        try:
            return b"" if self.folder is None else (self.folder / file).read_bytes()
        except OSError:
            return b""

    def write(self, file: str, data: bytes) -> None:
        """Write a file. Errors of the file system are ignored."""
        if self.folder is not None:
            with suppress(OSError):
                write_atomic(self.folder / file, data)


def user_cache() -> Cache:
    """The user's cache of costs measured on this machine. Stores nothing without a HOME."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with suppress(RuntimeError):  # no HOME, and the user is not in /etc/passwd
        base = base if base.is_absolute() else Path.home() / ".cache"
    return Cache(base / "prumux" if base.is_absolute() else None)


@dataclass(frozen=True)
class Memory(Store):
    """Stores tensors in memory, for a run whose folder does not exist yet."""

    values: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def tensors(
        self, name: str, make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """`Store.tensors` without files."""
        if name not in self.values:
            self.values[name] = owned(make())
        return self.values[name]

    def give(self, store: Store) -> None:
        """Copy all tensors to a store with files."""
        for name, value in self.values.items():
            store.tensors(name, lambda value=value: value)  # type: ignore[misc]
