"""Options that only TensorRT for RTX has: compute capabilities, and the runtime cache.

Source:
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-runtime-cache.html
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prumux.optimizer.base.errors import PrumuxError
from prumux.optimizer.base.store import write_atomic

from .library import RTX

if TYPE_CHECKING:
    import tensorrt as trt

CACHE = ".cache"
"""Suffix of the runtime cache beside an engine, as in `model.rtx.plan.cache`."""


def choose_capabilities(config: trt.IBuilderConfig, capabilities: Sequence[str]) -> None:
    """Set the compute capabilities to build for; empty = the portable default.

    Raises:
        PrumuxError: this version cannot build for one of the capabilities.
    """
    trt = RTX.library()
    known = dict(trt.ComputeCapability.__members__)
    unknown = [x for x in capabilities if x.upper() not in known]
    if unknown:
        raise PrumuxError(
            f"{RTX.title} {trt.__version__} cannot build for {unknown[0]}\n"
            "leave the option capabilities out for an engine that runs on most GPUs"
        )
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
    for i, name in enumerate(capabilities):
        config.set_compute_capability(known[name.upper()], i)


class RuntimeCache:
    """A file beside the engine with kernels that were finished for this GPU.

    The library ignores a cache of another GPU model or library version, and the cache is then
    replaced. If the file cannot be written, the next process finishes the kernels again.
    """

    def __init__(self, engine: trt.ICudaEngine, plan: Path) -> None:
        """Make the execution context of an engine, with the kernels of its cache file."""
        self._file = plan.with_name(plan.name + CACHE)
        config: trt.IRuntimeConfig = engine.create_runtime_config()
        self._cache: trt.IRuntimeCache = config.create_runtime_cache()
        self._saved = b""
        with suppress(OSError):
            self._saved = self._file.read_bytes()
        if self._saved and not self._cache.deserialize(self._saved):
            self._saved = b""
        config.set_runtime_cache(self._cache)
        self.context: trt.IExecutionContext = engine.create_execution_context(config)
        """The execution context that runs the engine."""

    def save(self) -> None:
        """Write the kernels to the file, if there are new kernels."""
        memory: trt.IHostMemory = self._cache.serialize()
        found = bytes(memory)
        if len(found) != len(self._saved):
            with suppress(OSError):
                write_atomic(self._file, found)
            self._saved = found
