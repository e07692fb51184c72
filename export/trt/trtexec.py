"""The `trtexec` line that builds an engine elsewhere, and tries it once.

It has not been run by us: no machine with TensorRT was at hand.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from prumux.export.graph.graph import build, input_names
from prumux.export.graph.graph_file import FILE, save
from prumux.optimizer.base.errors import VerifyError
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.ir import Encoder, Model

from .profiles import Profile, profiles

SCRIPT = "tensorrt.sh"
FOLDER = "tensorrt"


def write_script(model: Model, workload: Sequence[Batch], folder: Path) -> None:
    """Write `tensorrt.sh`, and `tensorrt/model.onnx` in fp16 that it builds an engine of.

    In bf16 where a weight is too large for fp16. Nothing is certified of that engine's
    answers; `--target tensorrt` on a machine that has it does so.
    """
    place = folder / FOLDER
    try:
        proto = build(model, precision="fp16")
    except VerifyError:
        proto = build(model, precision="bf16")
    save(proto, place)
    graph, plan = f"{FOLDER}/{FILE}", f"{FOLDER}/model.plan"
    script = trtexec_script(model.encoder, workload, graph=graph, plan=plan)
    (folder / SCRIPT).write_text(script)
    (folder / SCRIPT).chmod(0o755)


def trtexec_script(
    encoder: Encoder,
    workload: Sequence[Batch],
    *,
    graph: str = "model.onnx",
    plan: str = "model.plan",
    workspace_mib: int | None = None,
    opt_level: int = 3,
    tf32: bool = False,
) -> str:
    """A shell script that builds `plan` from `graph` with the profiles that we would use.

    It knows no precision: TensorRT 11 takes that from the graph's types, as 10 does with
    `--stronglyTyped`, which 11 takes and ignores. The graph must be one that `build` wrote
    with `portable`, or in a low type; one with ONNX Runtime's fusions cannot be read.

    Args:
        encoder: names the inputs and limits lengths.
        workload: the serving point.
        graph: the ONNX file, beside the script.
        plan: the engine to write.
        workspace_mib: memory that kernels may take while they run; None = all there is.
        opt_level: how long TensorRT searches, 0..5.
        tf32: whether float32 products may be rounded to TF32.
    """
    names = input_names(encoder)
    parts = ["trtexec", f"--onnx={graph}", f"--saveEngine={plan}", "--stronglyTyped"]
    for i, profile in enumerate(profiles(encoder, workload)):
        parts += [f"--profile={i}", *_shapes(names, profile)]
    parts += ["--timingCacheFile=timing.cache", f"--builderOptimizationLevel={opt_level}"]
    if workspace_mib is not None:
        parts.append(f"--memPoolSize=workspace:{workspace_mib}")
    if not tf32:
        parts.append("--noTF32")
    parts += ["--profilingVerbosity=detailed", "--skipInference"]
    line = " \\\n  ".join(shlex.join([x]) for x in parts)
    return (
        "#!/bin/sh\n"
        "# Builds the engine for this GPU, with TensorRT 10.13 or newer, or 11.\n"
        "# The precision is in the types of the graph. A plan runs only on the GPU model and\n"
        "# with the TensorRT version that it was built with.\n"
        "set -eu\n"
        'cd "$(dirname "$0")"\n'
        f'exec {line} "$@"\n'
    )


def _shapes(names: Sequence[str], profile: Profile) -> list[str]:
    return [
        f"--{kind}Shapes=" + ",".join(f"{name}:{rows}x{tokens}" for name in names)
        for kind, (rows, tokens) in zip(("min", "opt", "max"), profile.shapes(), strict=True)
    ]
