"""ONNX Runtime's plug-in provider for TensorRT for RTX, if it is installed.

    pip install onnxruntime-ep-nv-tensorrt-rtx

Source: https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/ We had no GPU. We
have only seen that the plug-in refuses a machine without a GPU; we have run no graph on the
plug-in.
"""

from __future__ import annotations

import importlib
from typing import Any

from prumux.optimizer.base.errors import MissingError

RTX = "NvTensorRTRTXExecutionProvider"
MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
INSTALL = "pip install onnxruntime-ep-nv-tensorrt-rtx"


def add_rtx(options: Any, ort: Any) -> None:
    """Let a session run on the plug-in's GPU.

    Args:
        options: ONNX Runtime's session options.
        ort: the module `onnxruntime`.

    Raises:
        MissingError: the plug-in is not installed or finds no GPU.
    """
    try:
        plug_in = importlib.import_module(MODULE)
    except (ImportError, OSError) as error:
        raise MissingError(
            f"ONNX Runtime's plug-in for TensorRT for RTX is not installed: {INSTALL}"
        ) from error
    try:
        if not _devices(ort):  # registering the plug-in twice is an error
            ort.register_execution_provider_library(RTX, plug_in.get_library_path())
        found = _devices(ort)
        if found:
            options.add_provider_for_devices(found[:1], {})
            return
        why = "it finds no GPU that it supports"
    except Exception as error:  # ONNX Runtime's errors have no common class
        why = str(error).strip().split("\n")[0][-200:]
    raise MissingError(
        f"ONNX Runtime's plug-in for TensorRT for RTX cannot be used: {why}\n"
        "it needs an NVIDIA RTX GPU and its driver"
    )


def _devices(ort: Any) -> list[Any]:
    return [x for x in ort.get_ep_devices() if x.ep_name == RTX]
