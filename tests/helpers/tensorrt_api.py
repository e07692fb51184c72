"""TensorRT's real Python API, with TensorRT itself or without it.

The bindings are a small wheel of their own. They want three libraries, and call none of their
functions while they are imported: three empty ones, made by the C compiler, are enough to
look at every class, signature and enum. Nothing can be built or run with them.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

BINDINGS = "tensorrt_cu13_bindings"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL", "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry", "getNvOnnxParserVersion",
    "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip


def real_api() -> ModuleType:
    """The API; skips the test, with a reason, where it cannot be had.

    Where the extra `dev` holds the bindings, their absence is a failure: nothing else here
    would tell that our TensorRT code fell behind the API.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError):
        pass  # the usual case: no TensorRT here
    try:
        version = metadata.version(BINDINGS)
    except metadata.PackageNotFoundError:
        told = f"neither TensorRT nor {BINDINGS} is installed"
        if sys.platform == "linux" and platform.machine() == "x86_64":
            pytest.fail(f"{told}: pip install 'prumux[dev]'")
        pytest.skip(told)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler for the three libraries that the bindings want")
    with tempfile.TemporaryDirectory() as folder:
        _load_stubs(Path(folder), compiler, version.partition(".")[0])
        flags = sys.getdlopenflags()
        sys.setdlopenflags(os.RTLD_LAZY)  # so that more symbols than we know do no harm
        try:
            return importlib.import_module("tensorrt_bindings")
        finally:
            sys.setdlopenflags(flags)


def rtx_api() -> ModuleType:
    """TensorRT for RTX: its whole library, which builds engines without a GPU.

    Skips the test, with a reason, where it is not installed; `make` installs it.
    """
    from prumux.export.trt.library import RTX
    from prumux.optimizer.base.errors import MissingError

    try:
        return RTX.library()  # type: ignore[no-any-return]
    except MissingError as error:
        pytest.skip(str(error).splitlines()[0])


def _load_stubs(folder: Path, compiler: str, major: str) -> None:
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{x}(void) {{ return 0; }}\n" for x in SYMBOLS))
    for name in LIBRARIES:
        soname = f"lib{name}.so.{major}"
        made = folder / soname
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(made)]
        subprocess.run([*command, str(source)], check=True, capture_output=True)
        # Found by its soname from now on. Local: its symbols must not hide those of RTX.
        ctypes.CDLL(str(made), ctypes.RTLD_LOCAL)
