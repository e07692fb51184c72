"""Finished steps are there whole or not at all, and are never made twice."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prumux.optimizer.base.store import Store, key, write_atomic


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
