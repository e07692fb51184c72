"""Finished steps on disk, so that a killed run can continue.

An entry is written to a temporary name, flushed and renamed, so it is never half-written.
Its key is a digest of everything that the step depends on, versions included.
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
    """A file-name-safe digest of the parts' texts."""
    return hashlib.sha256("\x00".join(str(part) for part in parts).encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's contents; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file such that no reader sees it half-written."""
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
            temporary.unlink(missing_ok=True)  # on a full disk its room is needed
        raise


def owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in torch-allocated, contiguous memory.

    Tensors in a memory-mapped file are not aligned, and sums of floats then differ in the
    last bit, so a resumed run or a worker would not give the same model.
    """
    return {k: x.clone(memory_format=torch.contiguous_format) for k, x in tensors.items()}


@dataclass(frozen=True)
class Store:
    """Keeps JSON values and tensors by name in `folder`; `folder=None` keeps nothing."""

    folder: Path | None = None

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value stored under `name`; `make` it and store it if there is none."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        data = json.dumps(make())
        write_atomic(path, data.encode())
        return json.loads(data)  # as later runs read it: lists, not tuples

    def tensors(
        self, name: str, make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The tensors stored under `name`; `make` and store them if there are none."""
        from safetensors.torch import load_file, save

        if self.folder is None:
            return make()
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            return owned(load_file(path))
        value = owned(make())  # also because safetensors refuses tensors that share storage
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
        """The last checkpoint of this name; None if there is none or it is damaged."""
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
        """Copy an entry of another store, by its file name; an existing entry stays."""
        if self.folder is not None and not (path := self.folder / file).exists():
            write_atomic(path, data)

    def has(self, name: str) -> bool:
        """True if a JSON value or tensors are stored under `name`."""
        return self.folder is not None and any(
            (self.folder / f"{name}.{kind}").exists() for kind in ("json", "safetensors")
        )


@dataclass(frozen=True)
class Cache(Store):
    """A store that a run can do without, such as one under a HOME that cannot be written."""

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """As `Store.json`: an entry that cannot be read is made, one that cannot be written
        is not kept."""
        if self.folder is not None:
            with suppress(OSError, ValueError):
                return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        data = json.dumps(make())
        self.write(f"{name}.json", data.encode())
        return json.loads(data)

    def read(self, file: str) -> bytes:
        """The contents of a file; empty if it cannot be read."""
        try:
            return b"" if self.folder is None else (self.folder / file).read_bytes()
        except OSError:
            return b""

    def write(self, file: str, data: bytes) -> None:
        """Keep a file, if it can be written."""
        if self.folder is not None:
            with suppress(OSError):
                write_atomic(self.folder / file, data)


def user_cache() -> Cache:
    """The user's cache folder, for measured costs of this machine; none without a HOME."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with suppress(RuntimeError):  # neither HOME nor an entry of the user in /etc/passwd
        base = base if base.is_absolute() else Path.home() / ".cache"
    return Cache(base / "prumux" if base.is_absolute() else None)


@dataclass(frozen=True)
class Memory(Store):
    """Remembers tensors in memory, for a run whose folder does not exist yet."""

    values: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def tensors(
        self, name: str, make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """As `Store.tensors`, without a file."""
        if name not in self.values:
            self.values[name] = owned(make())
        return self.values[name]

    def give(self, store: Store) -> None:
        """Put all that is remembered into a store with files."""
        for name, value in self.values.items():
            store.tensors(name, lambda value=value: value)  # type: ignore[misc]
