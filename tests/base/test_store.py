"""Finished steps are there whole or not at all, and are never made twice."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prumux.optimizer.base.store import Cache, Store, key, user_cache, write_atomic


def test_a_value_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return {"a": (1, 2), "b": None, "c": 0.1}

    store = Store(tmp_path / "deep" / "folder")
    assert not store.has("x")
    first = store.json("x", make)
    assert first == store.json("x", make) == {"a": [1, 2], "b": None, "c": 0.1}
    assert made == [1]
    assert store.has("x")
    assert not store.has("y")
    assert Store(tmp_path / "deep" / "folder").json("x", make) == first


def test_tensors_are_made_once(tmp_path: Path) -> None:
    made: list[int] = []
    whole = torch.randn(3, 4)

    def make() -> dict[str, Tensor]:
        made.append(1)
        top, rest = whole[:1], whole[1:]
        return {"top": top, "rest": rest, "turned": whole.T}

    store = Store(tmp_path)
    first, second = store.tensors("x", make), store.tensors("x", make)
    assert made == [1]
    assert store.has("x")
    for found in (first, second):
        assert torch.equal(found["rest"], whole[1:])
        assert torch.equal(found["turned"], whole.T)


def test_without_a_folder_nothing_is_kept() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(1)
        return 5

    for _ in range(2):
        assert Store().json("x", make) == 5
        assert "a" in Store().tensors("x", lambda: {"a": torch.ones(1)})
    assert made == [1, 1]
    assert not Store().has("x")


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Any:
        raise RuntimeError("half way")

    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="half way"):
        store.json("x", fail)
    with pytest.raises(RuntimeError, match="half way"):
        store.tensors("x", fail)
    assert not store.has("x")
    assert store.json("x", lambda: 3) == 3


def test_a_killed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "x.json", b"1")

    def killed(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    for name in ("x", "y"):
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path / f"{name}.json", b"2222")
    monkeypatch.undo()
    assert (tmp_path / "x.json").read_bytes() == b"1"
    assert not Store(tmp_path).has("y")
    assert Store(tmp_path).json("y", lambda: 7) == 7


def test_keys_tell_parts_apart() -> None:
    assert key("a", "b") == key("a", "b")
    assert len({key("a", "b"), key("ab"), key("b", "a"), key("a", "b", ""), key(1, "b")}) == 5
    assert key("../../x").isalnum()


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A folder that nobody can make, root included."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "home"


def test_a_cache_is_done_without(blocked: Path) -> None:
    cache = Cache(blocked / ".cache" / "prumux")
    assert cache.json("x", lambda: (1, 2)) == [1, 2]
    cache.write("y", b"y")
    assert cache.read("y") == b""
    with pytest.raises(NotADirectoryError):
        Store(blocked).json("x", lambda: 1)  # finished steps are not done without


def test_a_cache_without_a_folder() -> None:
    assert Cache().json("x", lambda: (1, 2)) == [1, 2]
    Cache().write("y", b"y")
    assert Cache().read("y") == b""


@pytest.mark.parametrize("torn", [b"", b'{"a": [1', b"\xff\xfe"])
def test_a_damaged_entry_of_a_cache_is_made_anew(torn: bytes, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write("x.json", torn)
    assert cache.json("x", lambda: 5) == 5
    assert cache.json("x", lambda: 6) == 5


def test_a_cache_hides_no_fault_of_what_it_keeps(tmp_path: Path) -> None:
    def fail() -> Any:
        raise OSError("the measurement")

    with pytest.raises(OSError, match="the measurement"):
        Cache(tmp_path).json("x", fail)


def test_where_the_cache_of_a_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache().folder == tmp_path / ".cache" / "prumux"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache().folder == tmp_path / ".cache" / "prumux"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert user_cache().folder == tmp_path / "other" / "prumux"
    monkeypatch.delenv("XDG_CACHE_HOME")

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert user_cache() == Cache()


def test_a_file_that_does_not_fit_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "x", b"data")
    assert list(tmp_path.iterdir()) == []
