"""Import TensorRT and find the GPU, or say what is missing and how to get it."""

from __future__ import annotations

from typing import Any

from prumux.optimizer.base.errors import MissingError

OLDEST = (10, 13)
NEEDED = f"{OLDEST[0]}.{OLDEST[1]} or newer"
INSTALL = "pip install 'prumux[tensorrt]'"


def library() -> Any:
    """The `tensorrt` module.

    Raises:
        MissingError: TensorRT is not installed, does not load, or is too old.
    """
    try:
        import tensorrt as trt
    except (ImportError, OSError) as error:  # OSError: the package without its libraries
        first = str(error).strip().split("\n")[0][:200]
        missing = isinstance(error, ModuleNotFoundError)
        raise MissingError(
            f"TensorRT {'is not installed' if missing else f'does not load: {first}'}\n"
            f"{INSTALL} ({NEEDED}), on a machine with an NVIDIA GPU; or keep the target onnx"
        ) from error
    version = tuple(int(x) for x in trt.__version__.split(".")[:2])
    if version < OLDEST:
        raise MissingError(
            f"TensorRT {trt.__version__} is here, {NEEDED} is needed: {INSTALL}"
        )
    return trt


def gpu() -> str:
    """Name of the GPU.

    Raises:
        MissingError: torch sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise MissingError(
            "TensorRT needs an NVIDIA GPU, and torch sees none\n"
            "install a torch with CUDA and the driver, or keep the target onnx"
        )
    return str(torch.cuda.get_device_name())


def check() -> None:
    """Check that TensorRT and a GPU exist, so that an engine can be built and run here.

    Raises:
        MissingError: one is missing; the message says how to get it.
    """
    library()
    gpu()
