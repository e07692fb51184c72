"""Builds a TensorRT engine from a typed graph.

Written against the API of TensorRT 10.13 and 11, which the tests compare it with. No engine
has been built with it by us: no machine with TensorRT was at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prumux.export.graph.builder import Precision
from prumux.optimizer.base.errors import GateError, PrumuxError, UsageError
from prumux.optimizer.base.store import write_atomic

from .library import gpu, library
from .profiles import Profile
from .types_check import Seen, check_built, check_network

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class Recipe:
    """How to build."""

    precision: Precision
    """The type of floats in the graph."""
    quantised: bool
    """Whether the graph holds Q/DQ pairs."""
    workspace_mib: int | None = None
    """Memory that kernels may take while they run; None = all there is."""
    opt_level: int = 3
    """How long TensorRT searches, 0..5."""


def build_plan(
    graph: Path,
    plan: Path,
    names: Sequence[str],
    profiles: Sequence[Profile],
    recipe: Recipe,
    *,
    timings: Path,
) -> Seen:
    """Write an engine for the GPU of this machine; returns what was seen in it.

    Args:
        graph: `model.onnx`, with its weights beside it if they have a file of their own.
        plan: the file to write; it is there as soon as the build, which takes long, is done,
            whatever is found in it.
        names: the graph's inputs, all [B, T].
        profiles: shapes to build for.
        recipe: types and limits.
        timings: folder of timing caches, kept between builds; one file a GPU and version.

    Raises:
        MissingError: TensorRT or the GPU is missing.
        UsageError: TensorRT's parser does not take the graph.
        GateError: network or engine do not hold the types that were asked for.
        PrumuxError: TensorRT found no way to build it.
    """
    trt = library()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise UsageError(_refused(parser, trt.__version__))
    check_network(network, recipe.precision, recipe.quantised)
    config = builder.create_builder_config()
    _configure(config, recipe)
    for profile in profiles:
        ranges = builder.create_optimization_profile()
        for name in names:
            ranges.set_shape(name, *profile.shapes())
        config.add_optimization_profile(ranges)
    cache = timings / f"tensorrt-{_digest(gpu(), trt.__version__)}.timings"
    _use_timings(config, cache)
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise PrumuxError(
            f"TensorRT {trt.__version__} could not build '{graph}'; it says why above\n"
            "more memory may help: tensorrt{workspace_mib=...}, or a smaller --batch"
        )
    write_atomic(plan, bytes(made))
    write_atomic(cache, bytes(config.get_timing_cache().serialize()))
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise GateError(f"TensorRT {trt.__version__} cannot load what it just built")
    return check_built(engine, names, recipe.precision, recipe.quantised)


def _configure(config: trt.IBuilderConfig, recipe: Recipe) -> None:
    trt = library()
    config.builder_optimization_level = recipe.opt_level
    # Else the inspector would tell names only, and nobody could see what types were taken.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if recipe.workspace_mib is not None:
        limit_bytes = recipe.workspace_mib << 20
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32: it is the yardstick


def _use_timings(config: trt.IBuilderConfig, cache: Path) -> None:
    """Timings of earlier builds; those of another GPU or version are not taken."""
    known = cache.read_bytes() if cache.exists() else b""
    timings = config.create_timing_cache(known)  # None where the bytes are damaged
    if timings is None or not config.set_timing_cache(timings, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _refused(parser: trt.OnnxParser, version: str) -> str:
    reason = "no reason given"
    if parser.num_errors:
        error: trt.ParserError = parser.get_error(0)
        reason = f"{error.node_operator()} '{error.node_name()}': {error.desc()}"[:300]
    return (
        f"the ONNX parser of TensorRT {version} refuses the graph: {reason}\n"
        "the target onnx does not need it; please report this"
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
