"""The `tensorrt` target: a typed `model.onnx`, and `model.plan` built from it.

What needs TensorRT here has not been run by us: no machine with TensorRT was at hand.
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
from prumux.export.graph.parity import Parity, compare
from prumux.export.graph.qdq import products, quantize, quantized
from prumux.export.graph.sensitivity import divergence, worst
from prumux.export.trt.build import Recipe, build_plan
from prumux.export.trt.engine import FACTS, PLAN, TrtEngine
from prumux.export.trt.profiles import Profile, profiles
from prumux.export.trt.trtexec import SCRIPT, trtexec_script
from prumux.export.trt.types_check import Seen
from prumux.optimizer.base.environment import versions
from prumux.optimizer.base.errors import GateError, MissingError, UsageError
from prumux.optimizer.base.store import file_digest
from prumux.optimizer.data.tokenize import groups_of
from prumux.optimizer.model.ir import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.pipeline.target import Emitted, Target

from .trt import library as trt_library

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.context import Context

CALIBRATION_ROWS = 512
"""Rows that ranges are taken from; they are of those that scores and refits use."""
SHARE = 0.75
"""Of int8's error. On SST-2 a few products of a MiniLM-L6 made so much of it."""
MOST_MIB = 1 << 20
TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.5}
"""How far a logit may be off, as a share of the largest one, or of 1 if that is less."""


@dataclass(frozen=True)
class TensorRt(Target):
    """TensorRT engine for the GPU of this machine, with its types checked after the build."""

    name: ClassVar[str] = "tensorrt"
    precision: Literal["fp16", "bf16", "fp32", "int8"] = field(
        default="fp16",
        metadata={"help": "types in the graph; int8 = matrix products, else fp16"},
    )
    workspace_mib: int | None = field(
        default=None, metadata={"help": "memory for kernels, in MiB; none = all there is"}
    )
    opt_level: int = field(
        default=3, metadata={"help": "how long TensorRT searches for kernels, 0..5"}
    )
    keep: tuple[str, ...] = field(
        default=(), metadata={"help": "maps that int8 leaves out, such as layers.0.ffn.down"}
    )
    spare: float = field(
        default=SHARE,
        metadata={"help": "share of int8's error whose maps stay fp16 as well"},
    )
    tolerance: float | None = field(
        default=None,
        metadata={"help": "how far a logit may be off, as a share of the largest one"},
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
        """The type of what is not quantised."""
        return "fp16" if self.precision == "int8" else self.precision

    @property
    def exact(self) -> bool:
        """Whether all is computed in float32."""
        return self.precision == "fp32"

    def baseline(self) -> TensorRt:
        """Nothing quantised; in fp16, as nobody would run the given model in fp32 here."""
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
        """Look for TensorRT and a GPU.

        Raises:
            MissingError: one of them is missing; says how to get it.
        """
        trt_library.check()

    def check_model(self, model: Model) -> None:
        """Look whether the model has what `keep` names."""
        if self.keep:
            proto = build(model, precision=self.floats, portable=True)
            check_known(self.keep, [x.removesuffix(".matmul") for x in products(proto)])

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write `model.onnx`, `tensorrt.sh`, `model.plan` and what is known of the plan.

        Raises:
            MissingError: no TensorRT or no GPU; `model.onnx` and `tensorrt.sh` are written.
            GateError: the engine holds other types than asked, or its logits are off.
            UsageError: there is no workload to build and check for.
        """
        files, shapes = self.write(model, ctx, folder), profiles(model.encoder, ctx.workload)
        try:
            self.check()
        except MissingError as error:
            raise MissingError(
                f"{error}\n'{folder}' holds {FILE} and {SCRIPT}, which builds the engine "
                "where both are"
            ) from error
        recipe = Recipe(
            self.floats, self.precision == "int8", self.workspace_mib, self.opt_level
        )
        names = input_names(model.encoder)
        seen = build_plan(
            folder / FILE,
            folder / PLAN,
            names,
            shapes,
            recipe,
            timings=ctx.cache.folder or folder,
        )
        facts = self._facts(model, folder, shapes, seen)
        (folder / (PLAN + FACTS)).write_text(json.dumps(facts, indent=2) + "\n")
        notes = {**seen.told(), **self._checked(model, ctx, folder)}
        return Emitted((*files, PLAN, PLAN + FACTS), notes)

    def write(self, model: Model, ctx: Context, folder: Path) -> tuple[str, ...]:
        """Write the typed graph and the script that makes an engine of it elsewhere.

        Raises:
            UsageError: there is no workload to take shapes from.
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
        (folder / SCRIPT).write_text(script)
        (folder / SCRIPT).chmod(0o755)
        return (*files, SCRIPT)

    def draft(self) -> Target:
        """As it is, but unchecked: the weights of a timing mean nothing."""
        return _Draft(self.precision, self.workspace_mib, self.opt_level, self.keep, spare=0)

    def engine(self, folder: Path, threads: int) -> TrtEngine:
        """Load `model.plan`; it takes no CPU threads of its own."""
        del threads
        return TrtEngine(folder / PLAN)

    def _graph(self, model: Model, ctx: Context) -> onnx.ModelProto:
        proto = build(model, precision=self.floats, portable=True)
        if self.precision != "int8":
            return proto
        some = ctx.fit.take(range(min(len(ctx.fit), CALIBRATION_ROWS)))
        rows = [batch.inputs() for batch in groups_of(some, 32, model.encoder.slots)]
        there = set(products(proto))  # a candidate may have lost a branch that is named
        kept = [x for x in self.keep if f"{x}.matmul" in there or x in there]
        found = quantize(proto, rows, kept)
        if not self.spare:
            return found
        names = [x.removesuffix(".matmul") for x in quantized(found)]
        spared = worst(divergence(model, names, ctx), most=math.inf, share=self.spare)
        return quantize(proto, rows, (*kept, *spared))

    def _checked(self, model: Model, ctx: Context, folder: Path) -> dict[str, Any]:
        """Parity with the torch module on the workload."""
        inputs = [batch.inputs() for batch in ctx.workload]
        module, engine = EncoderModule(model).eval(), self.engine(folder, ctx.threads)
        reference = [run(module, x) for x in inputs]
        masks = [x["attention_mask"] for x in inputs]
        found = [engine.run(x) for x in inputs]
        parity = compare(reference, found, model.task, masks)
        limit = self.limit(reference)
        if not parity.max_abs_diff <= limit:
            raise GateError(self._off(parity, limit))
        return {
            "parity": {self.precision: parity.max_abs_diff},
            "agreement": {self.precision: parity.agreement},
            "rows": parity.rows,
            "limit": limit,
        }

    def limit(self, reference: Sequence[Any]) -> float:
        """How far a logit may be from these."""
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
        self, model: Model, folder: Path, shapes: Sequence[Profile], seen: Seen
    ) -> Mapping[str, Any]:
        import torch

        return {
            "engine": "tensorrt",
            "precision": self.precision,
            "slots": model.encoder.slots,
            "inputs": list(input_names(model.encoder)),
            "profiles": [{"rows": x.rows, "tokens": x.tokens} for x in shapes],
            **seen.told(),
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
class _Draft(TensorRt):
    """Builds and checks no numbers."""

    def _checked(self, model: Model, ctx: Context, folder: Path) -> dict[str, Any]:
        del model, ctx, folder
        return {}
