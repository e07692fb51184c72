"""The `tensorrt` target: a typed `model.onnx`, and the engine `model.plan` built from it.

    prumux-opt MODEL --budget 2% --target 'tensorrt{precision=fp16}'

We have not run the parts that need TensorRT, for lack of a machine with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx

from prumux.export.graph.builder import Precision
from prumux.export.graph.graph import build, input_names
from prumux.export.graph.graph_file import FILE, save, verify
from prumux.export.graph.int8 import check_known
from prumux.export.graph.parity import Parity
from prumux.export.graph.qdq import products, quantize, quantized
from prumux.export.graph.sensitivity import divergence, worst
from prumux.export.runtime.reference import TorchReference
from prumux.export.trt.build import BuildOptions, build_plan
from prumux.export.trt.engine import FACTS, PLAN, TrtEngine
from prumux.export.trt.profiles import Profile, profiles
from prumux.export.trt.trtexec import SCRIPT, trtexec_script
from prumux.export.trt.types_check import TypeReport
from prumux.optimizer.base.environment import versions
from prumux.optimizer.base.errors import GateError, MissingError, UsageError
from prumux.optimizer.base.store import file_digest
from prumux.optimizer.data.tokenize import groups_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.target import Emitted, Target

from .trt import library as trt_library

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.context import Context

CALIBRATION_ROWS = 512
"""Fit rows on which int8 activations are calibrated."""
SPARED_SHARE = 0.75
"""Default share of int8's estimated error that is removed by keeping linear maps in fp16. On
SST-2 a few maps of a MiniLM-L6 caused that much of it."""
MOST_MIB = 1 << 20
"""Largest workspace, 1 TiB."""
TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.5}
"""Largest difference of a logit, as a share of the largest absolute logit, or of 1 if that is
smaller."""


@dataclass(frozen=True)
class TensorRt(Target):
    """TensorRT engine for the GPU of this machine, with its types checked after the build."""

    name: ClassVar[str] = "tensorrt"
    precision: Literal["fp16", "bf16", "fp32", "int8"] = field(
        default="fp16",
        metadata={
            "help": "type of the floats; int8 = matrix products in int8, the rest in fp16"
        },
    )
    workspace_mib: int | None = field(
        default=None, metadata={"help": "memory for kernels in MiB; none = all of the GPU's"}
    )
    opt_level: int = field(
        default=3,
        metadata={"help": "builder optimisation level, 0..5: higher levels search longer"},
    )
    keep: tuple[str, ...] = field(
        default=(),
        metadata={"help": "linear maps that int8 leaves in fp16, such as layers.0.ffn.down"},
    )
    spare: float = field(
        default=SPARED_SHARE,
        metadata={"help": "share of int8's error to avoid by leaving more maps in fp16, 0..1"},
    )
    tolerance: float | None = field(
        default=None,
        metadata={"help": "largest difference of a logit, as a share of the largest logit"},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.opt_level <= 5:
            raise ValueError(f"opt_level must be 0..5, not {self.opt_level}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ValueError(f"workspace_mib must be at least 1, not {self.workspace_mib}")
        if self.workspace_mib is not None and self.workspace_mib > MOST_MIB:
            raise ValueError(
                f"workspace_mib must be at most {MOST_MIB} (1 TiB), not {self.workspace_mib}; "
                "leave it out for all there is"
            )
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, not {self.tolerance:g}")
        if not 0 <= self.spare <= 1:
            raise ValueError(f"spare must be 0..1, not {self.spare:g}")
        if self.keep and self.precision != "int8":
            raise ValueError(f"keep is for precision=int8, not {self.precision}")

    @property
    def floats(self) -> Precision:
        """The type of values that are not quantised."""
        return "fp16" if self.precision == "int8" else self.precision

    @property
    def exact(self) -> bool:
        """True if the engine computes in fp32, and so gives the torch module's answers."""
        return self.precision == "fp32"

    def baseline(self) -> TensorRt:
        """The target on which the given model is timed: the same, with fp16 in place of int8.

        It is not fp32, because on a GPU users run the given model in fp16.
        """
        low = self.precision == "int8"
        return replace(self, precision=self.floats, keep=()) if low else self

    def bundle(self, model: Model, ctx: Context, folder: Path) -> None:
        """Write `triton/` around `model.plan`."""
        from prumux.export.triton.repository import FOLDER, Serving, write_bundle

        shapes = profiles(model.encoder, ctx.workload)
        rows = max(x.rows[2] for x in shapes)
        serving = Serving(
            max_batch=rows,
            length=max(b.input_ids.shape[1] for b in ctx.workload),
            profiles=sum(x.rows[2] == rows for x in shapes),
        )
        write_bundle(model.encoder, model.task, folder / PLAN, folder / FOLDER, serving)

    def check(self) -> None:
        """Check that TensorRT and a GPU exist.

        Raises:
            MissingError: one is missing; the message says how to get it.
        """
        trt_library.check()

    def check_model(self, model: Model) -> None:
        """Check that the model has the linear maps that `keep` names.

        Raises:
            UsageError: it lacks one; the message names two that it has.
        """
        if self.keep:
            proto = build(model, precision=self.floats, portable=True)
            check_known(self.keep, [x.removesuffix(".matmul") for x in products(proto)])

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write `model.onnx`, `tensorrt.sh`, `model.plan` and `model.plan.json`.

        Raises:
            MissingError: no TensorRT or no GPU. `model.onnx` and `tensorrt.sh` are written.
            GateError: the engine holds other types than were asked for, or a logit is off.
            UsageError: the context has no workload to build and check for.
        """
        files, shapes = self.write(model, ctx, folder), profiles(model.encoder, ctx.workload)
        try:
            self.check()
        except MissingError as error:
            raise MissingError(
                f"{error}\n'{folder}' holds {FILE} and {SCRIPT}, which builds the engine "
                "where both are"
            ) from error
        options = BuildOptions(
            self.floats, self.precision == "int8", self.workspace_mib, self.opt_level
        )
        names = input_names(model.encoder)
        types = build_plan(
            folder / FILE,
            folder / PLAN,
            names,
            shapes,
            options,
            timings=ctx.cache.folder or folder,
        )
        facts = self._facts(model, folder, shapes, types)
        (folder / (PLAN + FACTS)).write_text(
            json.dumps(facts, indent=2) + "\n", encoding="utf-8"
        )
        notes = {**types.notes(), **self._checked(model, ctx, folder)}
        return Emitted((*files, PLAN, PLAN + FACTS), notes)

    def write(self, model: Model, ctx: Context, folder: Path) -> tuple[str, ...]:
        """Write the typed graph, and the script that builds an engine from it elsewhere.

        Returns:
            The names of the files.

        Raises:
            UsageError: the context has no workload to take shapes from.
        """
        if not ctx.workload:
            raise UsageError("no workload to build an engine for: give the context a batch")
        proto = self._graph(model, ctx)
        verify(proto)
        files = save(proto, folder)
        script = trtexec_script(
            model.encoder,
            ctx.workload,
            workspace_mib=self.workspace_mib,
            opt_level=self.opt_level,
        )
        (folder / SCRIPT).write_text(script, encoding="utf-8")
        (folder / SCRIPT).chmod(0o755)
        return (*files, SCRIPT)

    def draft(self) -> Target:
        """A target that builds without checking logits, for timing random weights."""
        return _TensorRtDraft(
            self.precision, self.workspace_mib, self.opt_level, self.keep, spare=0
        )

    def engine(self, folder: Path, threads: int) -> TrtEngine:
        """Load `model.plan`; `threads` is ignored."""
        del threads
        return TrtEngine(folder / PLAN)

    def _graph(self, model: Model, ctx: Context) -> onnx.ModelProto:
        proto = build(model, precision=self.floats, portable=True)
        if self.precision != "int8":
            return proto
        some = ctx.fit.take(range(min(len(ctx.fit), CALIBRATION_ROWS)))
        rows = [batch.inputs() for batch in groups_of(some, 32, model.encoder.slots)]
        there = set(products(proto))  # pruning may have removed a branch that `keep` names
        kept = [x for x in self.keep if f"{x}.matmul" in there or x in there]
        found = quantize(proto, rows, kept)
        if not self.spare:
            return found
        names = [x.removesuffix(".matmul") for x in quantized(found)]
        spared = worst(divergence(model, names, ctx), most=math.inf, share=self.spare)
        return quantize(proto, rows, (*kept, *spared))

    def _checked(self, model: Model, ctx: Context, folder: Path) -> dict[str, Any]:
        """Parity with the torch module on the workload."""
        reference = TorchReference(model, ctx.workload)
        parity = reference.compare(self.engine(folder, ctx.threads))
        limit = self.limit(reference.logits)
        if not parity.max_abs_diff <= limit:
            raise GateError(self._off(parity, limit))
        return {
            "parity": {self.precision: parity.max_abs_diff},
            "agreement": {self.precision: parity.agreement},
            "rows": parity.rows,
            "limit": limit,
        }

    def limit(self, reference: Sequence[Any]) -> float:
        """The largest difference of a logit from these reference logits."""
        share = self.tolerance or TOLERANCES[self.precision]
        return share * max(1.0, *(float(np.abs(x).max(initial=0.0)) for x in reference))

    def _off(self, parity: Parity, limit: float) -> str:
        wider = {"bf16": "fp16", "fp16": "fp32", "int8": "fp16"}.get(self.precision)
        cure = f"use tensorrt{{precision={wider}}}, or " if wider else ""
        return (
            f"TensorRT ({self.precision}) against the torch module: logits differ by up to "
            f"{parity.max_abs_diff:.3g}, the limit is {limit:.3g} "
            f"({parity.agreement:.2%} of {parity.rows} labels agree)\n"
            f"{cure}accept it with a larger tolerance, say "
            f"tensorrt{{tolerance={2 * (self.tolerance or TOLERANCES[self.precision]):g}}}"
        )

    def _facts(
        self, model: Model, folder: Path, shapes: Sequence[Profile], types: TypeReport
    ) -> Mapping[str, Any]:
        import torch

        return {
            "engine": "tensorrt",
            "precision": self.precision,
            "slots": model.encoder.slots,
            "inputs": list(input_names(model.encoder)),
            "profiles": [{"rows": x.rows, "tokens": x.tokens} for x in shapes],
            **types.notes(),
            "graph_sha256": file_digest(folder / FILE),
            "plan_sha256": file_digest(folder / PLAN),
            "device": trt_library.gpu(),
            "compute_capability": list(torch.cuda.get_device_capability()),
            "versions": {
                **versions(),
                "tensorrt": str(trt_library.library().__version__),
                "cuda": str(torch.version.cuda),
            },
            "target": str(self),
        }


@dataclass(frozen=True)
class _TensorRtDraft(TensorRt):
    """Builds the engine and does not check its logits."""

    def _checked(self, model: Model, ctx: Context, folder: Path) -> dict[str, Any]:
        del model, ctx, folder
        return {}
