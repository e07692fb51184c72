"""Finding passes and targets by entry point."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from prumux.optimizer.base.errors import MissingError, SpecError, UsageError
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline import registry
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.target import Emitted, Engine, Target


@dataclass(frozen=True)
class PruneHeads(Pass):
    name: ClassVar[str] = "prune-heads"
    ratio: float = 0.5

    def run(self, model: Model, ctx: Context) -> Model:
        return model


@dataclass(frozen=True)
class Onnx(Target):
    name: ClassVar[str] = "onnx"
    opset: int = 18

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        raise NotImplementedError

    def engine(self, folder: Path, threads: int) -> Engine:
        raise NotImplementedError


Install = Callable[..., list[str]]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Entry points given as "group name=module:Class"; returns the log of look-ups."""
    toys = ModuleType("toys")
    toys.__dict__.update(PruneHeads=PruneHeads, Onnx=Onnx)
    monkeypatch.setitem(sys.modules, "toys", toys)
    log: list[str] = []

    def replace(*lines: str) -> list[str]:
        parts = [(group, *rest.split("=")) for group, rest in (x.split() for x in lines)]
        points = metadata.EntryPoints(
            metadata.EntryPoint(name, value, f"prumux.{group}") for group, name, value in parts
        )

        def select(group: str) -> metadata.EntryPoints:
            log.append(group)
            return points.select(group=group)

        monkeypatch.setattr(metadata, "entry_points", select)
        registry.forget()
        return log

    replace("passes prune-heads=toys:PruneHeads", "targets onnx=toys:Onnx")
    yield replace
    registry.forget()


def test_finds(install: Install) -> None:
    assert registry.find_pass("prune-heads") is PruneHeads
    assert registry.find_target("onnx") is Onnx
    assert registry.all_passes() == (PruneHeads,)
    assert registry.all_targets() == (Onnx,)


def test_looks_up_once_and_loads_only_what_is_asked(install: Install) -> None:
    log = install("passes prune-heads=toys:PruneHeads", "passes other=no_such_module:X")
    for _ in range(3):
        assert registry.find_pass("prune-heads") is PruneHeads
    assert log == ["prumux.passes"]


def test_unknown_name(install: Install) -> None:
    with pytest.raises(SpecError) as caught:
        registry.find_pass("prune-head")
    assert str(caught.value) == (
        "no pass is called 'prune-head'; did you mean 'prune-heads'?\n  known: prune-heads"
    )
    install()
    with pytest.raises(SpecError, match="known: none"):
        registry.find_target("x")


def test_pass_given_as_target_and_the_reverse(install: Install) -> None:
    with pytest.raises(SpecError, match="'onnx'; it is a target: give it with --target"):
        registry.find_pass("onnx")
    with pytest.raises(SpecError, match="'prune-heads'; it is a pass: give it with --passes"):
        registry.find_target("prune-heads")


def test_many_known_names_stay_short(install: Install) -> None:
    install(*(f"passes a-pass-with-a-long-name-{i}=toys:X" for i in range(99)))
    with pytest.raises(SpecError) as caught:
        registry.find_pass("x")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 100
    assert "[...]" in lines[-1]


def test_missing_library(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("passes mux=needs_library:Mux")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object, target: object = None) -> None:
            if name == "needs_library":
                raise ModuleNotFoundError("no", name="fancylib.core")

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(MissingError) as caught:
        registry.find_pass("mux")
    assert str(caught.value) == (
        "pass 'mux' needs 'fancylib', which is not installed; run: pip install fancylib"
    )


def test_missing_module_and_missing_class(install: Install) -> None:
    install("targets gone=no_such.module:X", "targets empty=toys:Nothing")
    with pytest.raises(
        MissingError, match="'gone' is registered but its module no_such is gone"
    ):
        registry.find_target("gone")
    with pytest.raises(MissingError, match=r"target 'empty' does not import: .*Nothing"):
        registry.find_target("empty")


def test_entry_point_of_another_kind(install: Install) -> None:
    install("passes onnx=toys:Onnx", "passes other=toys:PruneHeads")
    with pytest.raises(UsageError, match="pass 'onnx' is toys:Onnx, which is no Pass of that"):
        registry.find_pass("onnx")
    with pytest.raises(UsageError, match="pass 'other' is toys:PruneHeads, which is no Pass"):
        registry.find_pass("other")


def test_one_name_from_two_packages(install: Install) -> None:
    install("passes mux=toys:PruneHeads", "passes mux=other:Mux")
    with pytest.raises(
        UsageError, match="'mux': toys:PruneHeads and other:Mux; uninstall one"
    ):
        registry.find_pass("mux")


def test_parse_target(install: Install) -> None:
    assert registry.parse_target("onnx{opset=20}") == Onnx(20)
    with pytest.raises(SpecError, match="did you mean 'opset'") as caught:
        registry.parse_target("onnx{obset=20}")
    assert str(caught.value).endswith("  onnx{obset=20}\n       ^^^^^^^^")
    with pytest.raises(SpecError, match="it takes one here"):
        registry.parse_target("onnx{opset=20|21}")
    with pytest.raises(SpecError, match="one name is wanted here, not 2"):
        registry.parse_target("onnx,onnx")
    with pytest.raises(SpecError) as caught:
        registry.parse_target("onxx{opset=20}")
    assert str(caught.value) == (
        "no target is called 'onxx'; did you mean 'onnx'?\n"
        "  known: onnx\n"
        "  onxx{opset=20}\n"
        "  ^^^^^^^^^^^^^^"
    )


def test_installed_entry_points_are_listed() -> None:
    registry.forget()
    with pytest.raises(SpecError, match="known: align, "):
        registry.find_pass("no-such-pass")
