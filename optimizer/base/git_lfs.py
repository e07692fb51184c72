"""Detects Git LFS pointers, which `git clone` writes if Git LFS is not installed."""

from __future__ import annotations

from pathlib import Path

_HEAD = b"version https://git-lfs"


def is_pointer(path: Path) -> bool:
    """True if a file is a Git LFS pointer: three lines of text that name the real file."""
    try:
        with path.open("rb") as file:
            return file.read(len(_HEAD)) == _HEAD
    except OSError:
        return False


def cure(path: Path) -> str:
    """The error message for a Git LFS pointer, in two lines."""
    return (
        f"'{path.name}' is a Git LFS pointer: the real file was not downloaded\n"
        f"run: git lfs install && git -C '{path.parent}' lfs pull"
    )
