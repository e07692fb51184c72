"""The two flavours of TensorRT, and all differences between them.

`tensorrt` compiles kernels for the GPU of this machine. `rtx`, TensorRT for RTX, compiles for
many GPUs, and needs no GPU for this. The GPU that runs the kernels finishes them. Both
flavours have the same classes and calls, so the same code uses either.

Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import MissingError

PORTABLE = "8.0, 8.6, 8.9 and 12.0"
"""The default GPUs to build for: Ampere, Ada and Blackwell."""


@dataclass(frozen=True)
class Flavor:
    """A TensorRT library, and its differences from the other flavour."""

    name: str
    """Value of the option `flavor`."""
    title: str
    """Name of the library in messages."""
    engine: str
    """Name of the library in reports."""
    module: str
    """Name of the Python module."""
    oldest: tuple[int, int]
    install: str
    plan: str
    """Name of the engine file."""
    portable: bool
    """True = the library builds without a GPU, for chosen compute capabilities. The running
    GPU finishes the kernels, and a cache beside the engine stores them. False = the library
    builds on the GPU, and the timings of kernels are stored for later builds."""

    @property
    def needed(self) -> str:
        """The oldest supported version, in words."""
        return f"{self.oldest[0]}.{self.oldest[1]} or newer"

    def library(self) -> Any:
        """Import the Python module.

        Raises:
            MissingError: the module is not installed, does not load, or is too old.
        """
        try:
            trt = importlib.import_module(self.module)
        except (ImportError, OSError) as error:  # OSError: the package without its libraries
            first = str(error).strip().split("\n")[0][:200]
            missing = isinstance(error, ModuleNotFoundError)
            why = "is not installed" if missing else f"does not load: {first}"
            raise MissingError(f"{self.title} {why}\n{self.how()}") from error
        version = tuple(int(x) for x in trt.__version__.split(".")[:2])
        if version < self.oldest:
            raise MissingError(
                f"{self.title} {trt.__version__} is here, {self.needed} is needed: "
                f"{self.install}"
            )
        return trt

    def how(self) -> str:
        """Explain how to install the library, for error messages."""
        if self.portable:
            where = "an x86-64 machine, with or without a GPU"
            return f"{self.install} ({self.needed}), on {where}; or keep the target onnx"
        return (
            f"{self.install} ({self.needed}), on a machine with an NVIDIA GPU; "
            f"or keep the target onnx\nor {RTX.install} and tensorrt{{flavor=rtx}}, which "
            "builds an engine on any x86-64 machine"
        )

    def check_build(self) -> None:
        """Check that an engine can be built here.

        Raises:
            MissingError: the library is missing, or it needs a GPU and there is none.
        """
        self.library()
        if not self.portable:
            gpu(self.title)

    def check_run(self) -> None:
        """Check that an engine can be run here.

        Raises:
            MissingError: the library or the GPU is missing.
        """
        self.library()
        gpu(self.title)


CLASSIC = Flavor(
    name="tensorrt",
    title="TensorRT",
    engine="tensorrt",
    module="tensorrt",
    oldest=(10, 13),
    install="pip install 'prumux[tensorrt]'",
    plan="model.plan",
    portable=False,
)
RTX = Flavor(
    name="rtx",
    title="TensorRT for RTX",
    engine="tensorrt-rtx",
    module="tensorrt_rtx_bindings",
    oldest=(1, 7),
    install="pip install 'prumux[tensorrt-rtx]'",
    plan="model.rtx.plan",
    portable=True,
)
FLAVORS = (CLASSIC, RTX)
"""All flavours, in order of preference."""


def flavor_named(name: str) -> Flavor:
    """The flavour of the option `flavor`. `auto` is the first installed flavour.

    If no flavour is installed, `auto` is the classic flavour.
    """
    if name != "auto":
        return next(x for x in FLAVORS if x.name == name)
    return next((x for x in FLAVORS if _installed(x)), CLASSIC)


def flavor_of(plan: Path) -> Flavor:
    """The flavour that has built an engine file, by the file's name."""
    return RTX if plan.name.endswith(".rtx.plan") else CLASSIC


def gpu_here() -> bool:
    """True if torch sees a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def gpu(title: str = CLASSIC.title) -> str:
    """Name of the GPU.

    Raises:
        MissingError: torch sees no GPU.
    """
    import torch

    if not gpu_here():
        raise MissingError(
            f"{title} needs an NVIDIA GPU, and torch sees none\n"
            "install a torch with CUDA and the driver, or keep the target onnx"
        )
    return str(torch.cuda.get_device_name())


def _installed(flavor: Flavor) -> bool:
    try:
        importlib.import_module(flavor.module)
    except (ImportError, OSError):
        return False
    return True
