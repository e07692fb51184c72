"""The `tensorrt` target: a typed `model.onnx`, and an engine that is built from it.

    prumux-opt MODEL --budget 2% --target 'tensorrt{precision=fp16}'
    prumux-opt MODEL --budget 2% --target 'tensorrt{flavor=rtx}'

Without a GPU or without TensorRT, the typed graph runs in ONNX Runtime in place of the engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx

from prumux.export.graph.builder import Precision
from prumux.export.graph.graph import build, input_names
from prumux.export.graph.graph_file import FILE, save, verify
from prumux.export.graph.int8 import check_known
from prumux.export.graph.parity import TOLERANCES, Parity
from prumux.export.graph.qdq import products, quantize, quantized
from prumux.export.graph.sensitivity import divergence, worst
from prumux.export.runtime.ort import session_options
from prumux.export.runtime.reference import TorchReference
from prumux.export.runtime.typed_graph import TypedGraphEngine
from prumux.export.trt.build import BuildOptions, build_plan
from prumux.export.trt.engine import TrtEngine
from prumux.export.trt.library import CLASSIC, Flavor, flavor_named
from prumux.export.trt.plan_facts import FACTS, write_facts
from prumux.export.trt.profiles import profiles
from prumux.export.trt.trtexec import SCRIPT, trtexec_script
from prumux.optimizer.base.errors import GateError, MissingError, UsageError
from prumux.optimizer.data.tokenize import groups_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.target import Emitted, Engine, Target

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.context import Context

CALIBRATION_ROWS = 512
"""Number of fit rows for calibrating int8 activations."""
SPARED_SHARE = 0.75
"""Default share of int8's estimated error to remove, by keeping linear maps in fp16. On SST-2
a few maps of a MiniLM-L6 caused this share of the error."""
MOST_MIB = 1 << 20
"""Largest workspace, 1 TiB."""
Capability = Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


@dataclass(frozen=True)
class TensorRt(Target):
    """TensorRT engine, with its types checked; `flavor=rtx` builds it without a GPU."""

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
    flavor: Literal["auto", "tensorrt", "rtx"] = field(
        default="auto",
        metadata={
            "help": "rtx = TensorRT for RTX, which builds without a GPU; auto = tensorrt "
            "where it is installed, else rtx"
        },
    )
    capabilities: tuple[Literal["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"], ...] = (
        field(
            default=(),
            metadata={"help": "what GPUs flavor=rtx builds for; none given = sm80 and later"},
        )
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
        if self.capabilities and self.flavor != "rtx":
            raise ValueError(f"capabilities is for flavor=rtx, not {self.flavor}")
        if len(set(self.capabilities)) < len(self.capabilities):
            raise ValueError("capabilities names one twice")

    @property
    def library(self) -> Flavor:
        """The TensorRT flavour that builds and runs the engine on this machine."""
        return flavor_named(self.flavor)

    @property
    def floats(self) -> Precision:
        """Type of the values that are not quantised."""
        return "fp16" if self.precision == "int8" else self.precision

    @property
    def exact(self) -> bool:
        """True if the engine computes in fp32. Then it gives the torch module's answers."""
        return self.precision == "fp32"

    def baseline(self) -> TensorRt:
        """The target on which the given model is timed: this target, but fp16 if it is int8.

        The baseline is not fp32, because on a GPU users run the given model in fp16.
        """
        low = self.precision == "int8"
        return replace(self, precision=self.floats, keep=()) if low else self

    def tuned(self, model: Model, ctx: Context) -> TensorRt:
        """For int8, this target with `keep` set to the most sensitive linear maps."""
        if self.precision != "int8" or not self.spare:
            return self
        proto, _, kept = self._calibrated(model, ctx)
        names = [x.removesuffix(".matmul") for x in quantized(proto)]
        spared = worst(divergence(model, names, ctx), most=math.inf, share=self.spare)
        return replace(self, keep=tuple(dict.fromkeys((*kept, *spared))), spare=0)

    def bundle(self, model: Model, ctx: Context, folder: Path) -> None:
        """Write `triton/` around the plan.

        Triton has no backend for TensorRT for RTX. It serves the typed graph in place of such
        a plan.
        """
        from prumux.export.triton.repository import (
            FOLDER,
            Serving,
            serving_point,
            write_bundle,
        )

        shapes = profiles(model.encoder, ctx.workload)
        rows = max(x.rows[2] for x in shapes)
        serving = Serving(
            max_batch=rows,
            length=max(b.input_ids.shape[1] for b in ctx.workload),
            profiles=sum(x.rows[2] == rows for x in shapes),
        )
        engine = folder / CLASSIC.plan
        if not engine.exists():
            engine, serving = folder / FILE, serving_point(ctx.workload)
        write_bundle(model.encoder, model.task, engine, folder / FOLDER, serving)

    def check(self) -> None:
        """Check that TensorRT and a GPU exist, so that the engine can run here.

        Raises:
            MissingError: TensorRT or the GPU is missing; the message says how to get it.
        """
        self.library.check_run()

    def check_search(self) -> None:
        """Check that candidates can be scored on the engine or on its typed graph.

        Raises:
            MissingError: this machine has neither a GPU with TensorRT nor ONNX Runtime.
        """
        if not self.runs_here:
            session_options(1)

    def notice(self, timed: str = "on this CPU") -> str:
        """Tell the user why the engine does not run here and what replaces it; else ''."""
        if self.runs_here:
            return ""
        instead = (
            f"the typed graph in ONNX Runtime answers in its place, and candidates are timed "
            f"{timed}"
        )
        try:
            self.library.check_build()
        except MissingError as error:
            return f"{error}\nuntil the engine is built, {instead}"
        return f"no GPU here: {self.library.plan} is built but does not run; {instead}"

    @property
    def timed_as(self) -> str:
        """Name of this target in a costs file, by flavour and precision."""
        flavor: Any = self.library.name
        return str(TensorRt(precision=self.precision, flavor=flavor))

    @property
    def runs_here(self) -> bool:
        """True if TensorRT and a GPU exist."""
        try:
            self.check()
        except MissingError:
            return False
        return True

    def check_stages(self) -> None:
        """Refuse cascades: the number of rows of the second model is only known at run time.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self} builds one engine, and a cascade has two models\n"
            "run it in ONNX Runtime on the GPU: --target 'onnx{device=cuda}'; or build two "
            "engines: one run for each stage, without 'cascade'"
        )

    def check_model(self, model: Model) -> None:
        """Check that the model has the linear maps that `keep` names.

        Raises:
            UsageError: the model lacks one; the message names two maps that it has.
        """
        if self.keep:
            proto = build(model, precision=self.floats, portable=True)
            check_known(self.keep, [x.removesuffix(".matmul") for x in products(proto)])

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write `model.onnx`, `tensorrt.sh`, the plan, and a JSON file that describes it.

        Raises:
            MissingError: TensorRT is missing, or the GPU that the classic flavour needs.
                `model.onnx` and `tensorrt.sh` are written before.
            GateError: the engine has other types than requested, or a logit differs by more
                than the limit.
            UsageError: the context has no workload to build and check for.
        """
        files, shapes = self.write(model, ctx, folder), profiles(model.encoder, ctx.workload)
        flavor = self.library
        try:
            flavor.check_build()
        except MissingError as error:
            raise MissingError(
                f"{error}\n'{folder}' holds {FILE} and {SCRIPT}, which builds the engine "
                "where both are"
            ) from error
        plan = folder / flavor.plan
        options = BuildOptions(
            self.floats,
            # A bag of embeddings has no product that is large enough.
            bool(quantized(onnx.load(folder / FILE, load_external_data=False))),
            self.workspace_mib,
            self.opt_level,
            self.capabilities,
        )
        names = input_names(model.encoder)
        types = build_plan(
            folder / FILE,
            plan,
            names,
            shapes,
            options,
            flavor=flavor,
            timings=ctx.cache.folder or folder,
        )
        about = {"precision": self.precision, "target": str(self)}
        write_facts(model.encoder, plan, shapes, {**about, **types.notes()}, self.capabilities)
        notes = {**types.notes(), **self._checked(model, ctx, folder)}
        return Emitted((*files, plan.name, plan.name + FACTS), notes)

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
        """A target that does not check logits, for timing random weights."""
        same = {x.name: getattr(self, x.name) for x in fields(self)}
        return _TensorRtDraft(**{**same, "spare": 0})

    def engine(self, folder: Path, threads: int) -> Engine:
        """Load the plan, which ignores `threads`; without TensorRT or GPU, the typed graph."""
        if self.runs_here:
            return TrtEngine(folder / self.library.plan)
        return TypedGraphEngine(folder / FILE, threads, self.library.engine)

    def _graph(self, model: Model, ctx: Context) -> onnx.ModelProto:
        if self.precision != "int8":
            return build(model, precision=self.floats, portable=True)
        proto, rows, kept = self._calibrated(model, ctx)
        if not self.spare:
            return proto
        names = [x.removesuffix(".matmul") for x in quantized(proto)]
        spared = worst(divergence(model, names, ctx), most=math.inf, share=self.spare)
        plain = build(model, precision=self.floats, portable=True)
        return quantize(plain, rows, (*kept, *spared))

    def _calibrated(
        self, model: Model, ctx: Context
    ) -> tuple[onnx.ModelProto, list[Any], list[str]]:
        """The int8 graph, its calibration rows, and the maps of `keep` that the graph has."""
        proto = build(model, precision=self.floats, portable=True)
        some = ctx.fit.take(range(min(len(ctx.fit), CALIBRATION_ROWS)))
        rows = [batch.inputs() for batch in groups_of(some, 32, model.encoder.slots)]
        there = set(products(proto))  # pruning may have removed a branch that `keep` names
        kept = [x for x in self.keep if f"{x}.matmul" in there or x in there]
        return quantize(proto, rows, kept), rows, kept

    def _checked(self, model: Model, ctx: Context, folder: Path) -> dict[str, Any]:
        """Check parity with the torch module on the workload; return the notes."""
        reference = TorchReference(model, ctx.workload)
        engine = self.engine(folder, ctx.threads)
        parity = reference.compare(engine)
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
        """Largest allowed difference of a logit from these reference logits."""
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


@dataclass(frozen=True)
class _TensorRtDraft(TensorRt):
    """A target that writes the plan or the typed graph, and does not check its logits."""

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """See `TensorRt.emit`. The engine is built only if it can run here."""
        if self.runs_here:
            return super().emit(model, ctx, folder)
        return Emitted(self.write(model, ctx, folder))

    def _checked(self, model: Model, ctx: Context, folder: Path) -> dict[str, Any]:
        del model, ctx, folder
        return {}
