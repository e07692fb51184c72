"""Is all that our TensorRT code uses in the real API? Its use is read from the source."""

from __future__ import annotations

import ast
import inspect
import sys
from types import ModuleType

import pytest

from prumux.export import tensorrt
from prumux.export.trt import build as trt_build
from prumux.export.trt import engine as trt_engine
from prumux.export.trt import library as trt_library
from prumux.export.trt import rtx as trt_rtx
from prumux.export.trt import types_check as trt_types
from prumux.export.trt.library import CLASSIC, RTX
from tests.helpers import tensorrt_api
from tests.helpers.api_use import Uses, signatures
from tests.helpers.tensorrt_api import real_api, rtx_api

SOURCES = {
    x.__name__.rpartition(".")[2]: inspect.getsource(x)
    for x in (tensorrt, trt_build, trt_engine, trt_library, trt_types)
}
RTX_SOURCES = {**SOURCES, "rtx": inspect.getsource(trt_rtx)}


@pytest.fixture(scope="module")
def api() -> ModuleType:
    """TensorRT's API."""
    return real_api()


def test_missing_bindings_do_not_pass_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(tensorrt_api, "BINDINGS", "no-such-bindings")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(pytest.fail.Exception, match="neither TensorRT nor no-such-bindings"):
        real_api()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(pytest.skip.Exception, match="neither TensorRT nor no-such-bindings"):
        real_api()


def uses(api: ModuleType, source: str) -> Uses:
    found = Uses(api)
    found.read(source)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_everything_we_use_exists(api: ModuleType, name: str) -> None:
    assert tuple(int(x) for x in api.__version__.split(".")[:2]) >= CLASSIC.oldest
    assert uses(api, SOURCES[name]).wrong == []


@pytest.mark.parametrize("name", RTX_SOURCES)
def test_everything_we_use_exists_in_rtx(name: str) -> None:
    rtx = rtx_api()
    assert tuple(int(x) for x in rtx.__version__.split(".")[:2]) >= RTX.oldest
    found = uses(rtx, RTX_SOURCES[name])
    assert found.wrong == []
    if name == "rtx":
        assert {
            "IBuilderConfig.set_compute_capability",
            "IRuntimeCache.serialize",
        } <= found.found


def test_everything_was_followed(api: ModuleType) -> None:
    """Any attribute that some class of TensorRT has, and we use, was seen as TensorRT's."""
    found = {x.rpartition(".")[2] for s in SOURCES.values() for x in uses(api, s).found}
    classes = [x for x in vars(api).values() if isinstance(x, type)]
    theirs = {k for x in classes for k in vars(x) if "_" in k.strip("_")}
    ours = {
        node.attr
        for s in SOURCES.values()
        for node in ast.walk(ast.parse(s))
        if isinstance(node, ast.Attribute)
    }
    assert (ours & theirs) - found == set()
    assert len(found) > 45
    assert {"build_serialized_network", "execute_async_v3", "QUANTIZE", "dtype"} <= found


SETUP = """
def f(config: trt.IBuilderConfig, engine: trt.ICudaEngine):
    import tensorrt as trt
    {}
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.set_flag(trt.BuilderFlag.FP17)", "there is no BuilderFlag.FP17"),
        ("config.max_workspace = 1", "there is no IBuilderConfig.max_workspace"),
        ("config.num_optimization_profiles = 1", "num_optimization_profiles cannot be set"),
        ("config.set_flag()", "no IBuilderConfig.set_flag takes config.set_flag()"),
        ("config.set_flag(trt.BuilderFlag.TF32, 1)", "no IBuilderConfig.set_flag takes"),
        ("config.set_flag(flags=3)", "no IBuilderConfig.set_flag takes"),
        ("x = trt.Builder()", "no Builder takes trt.Builder()"),
        ("x = trt.Bilder(1)", "there is no Bilder"),
        ("trt.Builder(1).create_network().layers", "there is no INetworkDefinition.layers"),
        ("x, y = engine, 1; x.run()", "there is no ICudaEngine.run"),
        ("y = [engine.create_execution_context().go(i) for i in [1]]", "IExecutionContext.go"),
        ("print(config.get_timing_cache().save())", "there is no ITimingCache.save"),
        ("x: trt.ParserErr = engine.serialize()", "there is no ParserErr"),
        ("x: trt.ParserError = config.get_flag(0, 1)", "no IBuilderConfig.get_flag takes"),
        ("x: trt.ParserError = f(1); x.desk()", "there is no ParserError.desk"),
        ("if engine.name.x: engine.nothing", "there is no ICudaEngine.nothing"),
    ],
)
def test_what_does_not_exist_is_seen(api: ModuleType, line: str, said: str) -> None:
    wrong = uses(api, SETUP.format(line)).wrong
    assert len(wrong) == 1
    assert said in wrong[0]


def test_what_a_class_keeps_in_itself_is_followed(api: ModuleType) -> None:
    source = """
class X:
    def run(self):
        self._context.launch()

    def __init__(self, engine: trt.ICudaEngine):
        self._context = engine.create_execution_context()
"""
    assert uses(api, source).wrong == ["line 4: there is no IExecutionContext.launch"]


def test_signatures_are_read_from_docstrings() -> None:
    def overloaded() -> None:
        """f(*args, **kwargs)
        Overloaded function.

        1. f(self: a.B, x: Union[int, str], y: a.E = <E.X: 0>) -> list[a.C]

        Does.

        2. f(self: a.B) -> None
        """

    first, second = signatures(overloaded)
    assert (first.names, first.required, first.returns) == (("x", "y"), 1, "list[a.C]")
    assert (second.names, second.required, second.returns) == ((), 0, "None")
