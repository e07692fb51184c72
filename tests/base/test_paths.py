"""Names of files that users give."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.paths import check_name, hub_cure, local_path


@pytest.mark.parametrize("name", ["a b", "größe 模型", "a\nb", "[b]", "-x", "#%{}", None])
def test_unusual_names_are_names(name: str | None) -> None:
    check_name(name)


def test_a_name_that_libraries_cannot_open_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'m\\\\xff' cannot be opened as UTF-8\nrename"):
        check_name("m\udcff")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UsageError, match="'ö' cannot be opened as UTF-8\nset PYTHONUTF8=1"):
        check_name("\udcc3\udcb6")


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 30), "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a path"):
        check_name(name)


def test_a_tilde_is_the_home_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_path("~/model") == tmp_path / "home" / "model"
    Path("~", "model").mkdir(parents=True)
    assert local_path("~/model") == Path("~/model")


def test_a_cache_of_the_hub_that_cannot_be_written_has_a_cure() -> None:
    for number in (13, 20, 28, 30):
        assert "set HF_HOME" in hub_cure(OSError(number, "no"), "check the name")
    for other in (OSError("404"), OSError(2, "no such"), ValueError("x")):
        assert hub_cure(other, "check the name") == "check the name"
