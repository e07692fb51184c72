"""Build a TensorRT engine from a typed ONNX graph.

The code uses the API of TensorRT 10.13 and 11 and of TensorRT for RTX 1.7. A test compares
every call with both APIs. We have built engines with TensorRT for RTX on a CPU, but none with
TensorRT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prumux.export.graph.builder import Precision
from prumux.optimizer.base.errors import GateError, PrumuxError, UsageError
from prumux.optimizer.base.store import Cache, write_atomic

from .library import Flavor, gpu, gpu_here
from .profiles import Profile
from .rtx import choose_capabilities
from .types_check import TypeReport, check_built, check_network

if TYPE_CHECKING:
    import tensorrt as trt

NOT_OPENED = (
    "no GPU was there to open the engine; the types of the parsed network, which the build "
    "must keep, were right"
)


@dataclass(frozen=True)
class BuildOptions:
    """Options for building an engine."""

    precision: Precision
    """Type of the floats in the graph."""
    quantised: bool
    """True if the graph contains Q/DQ pairs."""
    workspace_mib: int | None = None
    """Memory in MiB that kernels may use while they run; None = all of the GPU's."""
    opt_level: int = 3
    """TensorRT's builder optimisation level, 0..5: higher levels search longer."""
    capabilities: tuple[str, ...] = ()
    """Compute capabilities to build for, such as sm89; empty = the flavour's default."""


def build_plan(
    graph: Path,
    plan: Path,
    names: Sequence[str],
    profiles: Sequence[Profile],
    options: BuildOptions,
    *,
    flavor: Flavor,
    timings: Path,
) -> TypeReport:
    """Build an engine, write it, and check its types.

    Args:
        graph: `model.onnx`. A large graph has a second file with its weights beside it.
        plan: the file to write. It is written before its types are checked.
        names: the graph's inputs, all [B, T].
        profiles: shapes to build for.
        options: types and limits.
        flavor: the library that builds the engine.
        timings: folder of TensorRT's timing caches, one file per GPU and version.

    Returns:
        The types in the engine. Without a GPU no engine can be opened, so only the types of
        the network are checked.

    Raises:
        MissingError: the library or the GPU is missing.
        UsageError: TensorRT's parser refuses the graph.
        GateError: the network or the engine has other types than requested.
        PrumuxError: TensorRT could not build the engine.
    """
    trt = flavor.library()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser = trt.OnnxParser(network, logger)  # owns the weights: it must live until the end
    if not parser.parse_from_file(str(graph)):
        raise UsageError(_refused(parser, f"{flavor.title} {trt.__version__}"))
    check_network(network, options.precision, options.quantised, flavor)
    config = _configured(builder, names, profiles, options, flavor)
    if flavor.portable:
        choose_capabilities(config, options.capabilities)
        made = builder.build_serialized_network(network, config)
    else:
        cache, name = Cache(timings), f"tensorrt-{_digest(gpu(), trt.__version__)}.timings"
        _use_timings(config, cache.read(name))
        made = builder.build_serialized_network(network, config)
    if made is None:
        raise PrumuxError(
            f"{flavor.title} {trt.__version__} could not build '{graph}'; it says why above\n"
            "more memory may help: tensorrt{workspace_mib=...}, or a smaller --batch"
        )
    write_atomic(plan, bytes(made))
    if not flavor.portable:
        cache.write(name, _timings(config))
    elif not gpu_here():
        return TypeReport({}, unseen=NOT_OPENED)
    return _check_plan(logger, plan, names, options, flavor)


def _check_plan(
    logger: trt.Logger,
    plan: Path,
    names: Sequence[str],
    options: BuildOptions,
    flavor: Flavor,
) -> TypeReport:
    """Load a plan and check its types."""
    trt = flavor.library()
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise GateError(f"{flavor.title} {trt.__version__} cannot load what it just built")
    return check_built(engine, names, options.precision, options.quantised, flavor)


def _configured(
    builder: trt.Builder,
    names: Sequence[str],
    profiles: Sequence[Profile],
    options: BuildOptions,
    flavor: Flavor,
) -> trt.IBuilderConfig:
    """Make a builder config from the options, with one optimisation profile per range."""
    trt = flavor.library()
    config = builder.create_builder_config()
    config.builder_optimization_level = options.opt_level
    # Without this the inspector only reports names, and the types cannot be checked.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        limit_bytes = options.workspace_mib << 20
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # TF32 products do not have fp32 precision
    for profile in profiles:
        ranges = builder.create_optimization_profile()
        for name in names:
            ranges.set_shape(name, *profile.shapes())
        config.add_optimization_profile(ranges)
    return config


def _use_timings(config: trt.IBuilderConfig, known: bytes) -> None:
    """Use the timings of earlier builds. TensorRT refuses those of other GPUs and versions."""
    timings = config.create_timing_cache(known)  # None if the bytes are damaged
    if timings is None or not config.set_timing_cache(timings, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _timings(config: trt.IBuilderConfig) -> bytes:
    return bytes(config.get_timing_cache().serialize())


def _refused(parser: trt.OnnxParser, by: str) -> str:
    reason = "no reason given"
    if parser.num_errors:
        error: trt.ParserError = parser.get_error(0)
        reason = f"{error.node_operator()} '{error.node_name()}': {error.desc()}"[:300]
    return (
        f"the ONNX parser of {by} refuses the graph: {reason}\n"
        "the target onnx does not need it; please report this"
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
