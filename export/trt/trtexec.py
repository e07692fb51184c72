"""A script that builds the TensorRT engine on another machine with `trtexec`.

We have not run the script, because we had no machine with TensorRT.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from prumux.export.graph.graph import build, input_names
from prumux.export.graph.graph_file import FILE, save
from prumux.optimizer.base.errors import VerifyError
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder

from .library import CLASSIC
from .profiles import Profile, profiles
from .stages import EngineStage

SCRIPT = "tensorrt.sh"
FOLDER = "tensorrt"


def write_script(model: Model, workload: Sequence[Batch], folder: Path) -> None:
    """Write `tensorrt.sh`, and `tensorrt/model.onnx`, the graph of the engine to build.

    The graph is in fp16, or in bf16 if a weight is too large for fp16. The engine's answers
    are not certified. `--target tensorrt` on a machine with TensorRT certifies answers.
    """
    place = folder / FOLDER
    try:
        proto = build(model, precision="fp16", portable=True)
    except VerifyError:
        proto = build(model, precision="bf16", portable=True)
    save(proto, place)
    graph, plan = f"{FOLDER}/{FILE}", f"{FOLDER}/{CLASSIC.plan}"
    _write(folder, trtexec_script(model.encoder, workload, graph=graph, plan=plan))


def write_trtexec(
    stages: Sequence[EngineStage], folder: Path, workspace_mib: int | None, opt_level: int
) -> None:
    """Write `tensorrt.sh`, which builds an engine from the graph of every stage.

    Args:
        stages: the engines to build.
        folder: the folder of the result.
        workspace_mib: see `trtexec_script`.
        opt_level: see `trtexec_script`.
    """
    options = _options(workspace_mib, opt_level)
    commands = [
        _command(x.model.encoder, x.profiles, x.path(FILE), x.path(CLASSIC.plan), options)
        for x in stages
    ]
    _write(folder, _script(commands))


def trtexec_script(
    encoder: Encoder,
    workload: Sequence[Batch],
    *,
    graph: str = FILE,
    plan: str = CLASSIC.plan,
    workspace_mib: int | None = None,
    opt_level: int = 3,
    tf32: bool = False,
) -> str:
    """Write a shell script that builds `plan` from `graph`, with the shapes of `profiles`.

    The script sets no precision. TensorRT 11 takes the precision from the graph's types.
    TensorRT 10 does so with `--stronglyTyped`; TensorRT 11 accepts and ignores this option.
    `build` must have written the graph with `portable` or in a low type, because TensorRT
    cannot read ONNX Runtime's fusions.

    Args:
        encoder: has the names of the inputs and the largest length.
        workload: batches at the serving point.
        graph: the ONNX file, relative to the script.
        plan: the engine file to write, relative to the script.
        workspace_mib: memory in MiB that kernels may use while they run; None = all.
        opt_level: TensorRT's builder optimisation level, 0..5.
        tf32: True = allow TF32 for float32 products.
    """
    options = _options(workspace_mib, opt_level, tf32)
    shapes = profiles(encoder, workload)
    return _script([_command(encoder, shapes, graph, plan, options)])


def _options(workspace_mib: int | None, opt_level: int, tf32: bool = False) -> list[str]:
    found = ["--timingCacheFile=timing.cache", f"--builderOptimizationLevel={opt_level}"]
    if workspace_mib is not None:
        found.append(f"--memPoolSize=workspace:{workspace_mib}")
    if not tf32:
        found.append("--noTF32")
    return [*found, "--profilingVerbosity=detailed", "--skipInference"]


def _command(
    encoder: Encoder,
    shapes: Sequence[Profile],
    graph: str,
    plan: str,
    options: Sequence[str],
) -> str:
    """The command that builds one engine."""
    names = input_names(encoder)
    parts = ["trtexec", f"--onnx={graph}", f"--saveEngine={plan}", "--stronglyTyped"]
    for i, profile in enumerate(shapes):
        parts += [f"--profile={i}", *_shapes(names, profile)]
    line = " \\\n  ".join(shlex.join([x]) for x in (*parts, *options))
    return f'{line} "$@"\n'


def _script(commands: Sequence[str]) -> str:
    *before, last = commands
    what = "engines" if before else "engine"
    return (
        "#!/bin/sh\n"
        f"# Builds the {what} for this GPU, with TensorRT 10.13 or newer, or 11.\n"
        "# The precision is in the types of the graph. A plan runs only on the GPU model and\n"
        "# with the TensorRT version that it was built with.\n"
        "set -eu\n"
        'cd "$(dirname "$0")"\n'
        f"{''.join(before)}exec {last}"
    )


def _write(folder: Path, script: str) -> None:
    (folder / SCRIPT).write_text(script, encoding="utf-8")
    (folder / SCRIPT).chmod(0o755)


def _shapes(names: Sequence[str], profile: Profile) -> list[str]:
    return [
        f"--{kind}Shapes=" + ",".join(f"{name}:{rows}x{tokens}" for name in names)
        for kind, (rows, tokens) in zip(("min", "opt", "max"), profile.shapes(), strict=True)
    ]
