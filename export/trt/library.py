"""TensorRT itself and the GPU that it needs: found, or named as missing."""

from __future__ import annotations

from typing import Any

from prumux.optimizer.base.errors import MissingError

OLDEST = (10, 13)
NEEDED = f"{OLDEST[0]}.{OLDEST[1]} or newer"
INSTALL = "pip install 'prumux[tensorrt]'"


def library() -> Any:
    """The `tensorrt` module.

    Raises:
        MissingError: it is not installed, or too old.
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
    """The GPU's name.

    Raises:
        MissingError: torch sees none.
    """
    import torch

    if not torch.cuda.is_available():
        raise MissingError(
            "TensorRT needs an NVIDIA GPU, and torch sees none\n"
            "install a torch with CUDA and the driver, or keep the target onnx"
        )
    return str(torch.cuda.get_device_name())


def check() -> None:
    """Look whether an engine could be built and run here.

    Raises:
        MissingError: TensorRT or the GPU is missing; says how to get it.
    """
    library()
    gpu()
