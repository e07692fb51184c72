"""The `tensorrt` target: a typed `model.onnx`, and an engine that is built from it.

A cascade becomes two graphs and two engines, see `trt/stages.py`.

    prumux-opt MODEL --budget 2% --target 'tensorrt{precision=fp16}'
    prumux-opt MODEL --budget 2% --target 'tensorrt{flavor=rtx}'

Without a GPU or without TensorRT, the typed graph runs in ONNX Runtime in place of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx

from prumux.export.graph.graph import build, input_names
from prumux.export.graph.graph_file import FILE, save, verify
from prumux.export.graph.int8 import check_known
from prumux.export.graph.parity import TOLERANCES, Parity
from prumux.export.graph.qdq import products, quantized
from prumux.export.graph.typed import GraphTypes
from prumux.export.runtime.cascade_engine import FileEngine, open_stages, write_cascade
from prumux.export.runtime.ort import session_options
from prumux.export.runtime.reference import TorchReference
from prumux.export.runtime.typed_graph import TypedGraphEngine
from prumux.export.trt.build import BuildOptions, build_plan
from prumux.export.trt.engine import TrtEngine
from prumux.export.trt.library import Flavor, flavor_named
from prumux.export.trt.plan_facts import FACTS, write_facts
from prumux.export.trt.stages import EngineStage, engine_stages
from prumux.export.trt.trtexec import SCRIPT, write_trtexec
from prumux.optimizer.base.errors import GateError, MissingError, UsageError
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.target import Emitted, Engine, Target

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.context import Context

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
    def types(self) -> GraphTypes:
        """The types of the graphs."""
        return GraphTypes(self.precision, self.keep, self.spare)

    @property
    def exact(self) -> bool:
        """True if the engine computes in fp32. Then it gives the torch module's answers."""
        return self.precision == "fp32"

    def baseline(self) -> TensorRt:
        """The target on which the given model is timed: this target, but fp16 if it is int8.

        The baseline is not fp32, because on a GPU users run the given model in fp16.
        """
        low = self.precision == "int8"
        return replace(self, precision=self.types.floats, keep=()) if low else self

    def tuned(self, model: Model, ctx: Context) -> TensorRt:
        """For int8, this target with `keep` set to the most sensitive linear maps."""
        if self.precision != "int8" or not self.spare:
            return self
        return replace(self, keep=self.types.kept(model, ctx), spare=0)

    def bundle(self, model: Model, ctx: Context, folder: Path) -> None:
        """Write `triton/` around the plans.

        Triton has no backend for TensorRT for RTX. It serves the typed graphs in place of such
        plans.
        """
        from prumux.export.triton.plans import write_plans

        write_plans(model, ctx.workload, folder)

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
        """Accept cascades: each stage becomes one engine."""

    @property
    def searches_cascades(self) -> bool:
        """False: two engines and the host between them have not been timed on a GPU."""
        return False

    def check_model(self, model: Model) -> None:
        """Check that the model has the linear maps that `keep` names.

        Raises:
            UsageError: the model lacks one; the message names two maps that it has.
        """
        if self.keep:
            proto = build(model, precision=self.types.floats, portable=True)
            check_known(self.keep, [x.removesuffix(".matmul") for x in products(proto)])

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write `model.onnx`, `tensorrt.sh`, the plan, and a JSON file that describes it.

        The graph, the plan and the JSON file of a cascade's stages are in folders `first` and
        `second`.

        Raises:
            MissingError: TensorRT is missing, or the GPU that the classic flavour needs.
                The graphs and `tensorrt.sh` are written before.
            GateError: an engine has other types than requested, or a logit differs by more
                than the limit.
            UsageError: the context has no workload to build and check for.
        """
        files, stages = self.write(model, ctx, folder), engine_stages(model, ctx.workload)
        try:
            self.library.check_build()
        except MissingError as error:
            graphs = ", ".join(x.path(FILE) for x in stages)
            what = (
                "engine where both are" if len(stages) == 1 else "engines where all three are"
            )
            raise MissingError(
                f"{error}\n'{folder}' holds {graphs} and {SCRIPT}, which builds the {what}"
            ) from error
        types = []
        for stage in stages:
            types.append(self._build(stage, ctx, folder))
            plan = stage.path(self.library.plan)
            files = (*files, plan, plan + FACTS)
        notes = self._checked(model, ctx, folder)
        if model.second is not None:
            notes["second"] = {**types[1], **notes.get("second", {})}
        return Emitted(files, {**types[0], **notes})

    def write(self, model: Model, ctx: Context, folder: Path) -> tuple[str, ...]:
        """Write the typed graphs, and the script that builds engines from them elsewhere.

        Returns:
            The names of the files.

        Raises:
            UsageError: the context has no workload to take shapes from.
        """
        if not ctx.workload:
            raise UsageError("no workload to build an engine for: give the context a batch")
        stages, files = engine_stages(model, ctx.workload), write_cascade(model.second, folder)
        for stage in stages:
            proto = self.types.graph(stage.model, ctx)
            verify(proto)
            files += tuple(stage.path(x) for x in save(proto, stage.folder(folder)))
        write_trtexec(stages, folder, self.workspace_mib, self.opt_level)
        return (*files, SCRIPT)

    def _build(self, stage: EngineStage, ctx: Context, folder: Path) -> dict[str, Any]:
        """Build the plan of a stage and describe it; return the notes about its types."""
        place, encoder = stage.folder(folder), stage.model.encoder
        options = BuildOptions(
            self.types.floats,
            # A bag of embeddings has no product that is large enough.
            bool(quantized(onnx.load(place / FILE, load_external_data=False))),
            self.workspace_mib,
            self.opt_level,
            self.capabilities,
        )
        plan = place / self.library.plan
        types = build_plan(
            place / FILE,
            plan,
            input_names(encoder),
            stage.profiles,
            options,
            flavor=self.library,
            timings=ctx.cache.folder or folder,
        ).notes()
        about = {"precision": self.precision, "target": str(self)}
        write_facts(encoder, plan, stage.profiles, {**about, **types}, self.capabilities)
        return types

    def draft(self) -> Target:
        """A target that does not check logits, for timing random weights."""
        same = {x.name: getattr(self, x.name) for x in fields(self)}
        return _TensorRtDraft(**{**same, "spare": 0})

    def engine(self, folder: Path, threads: int) -> Engine:
        """Load the plans, which ignore `threads`; without TensorRT or GPU the typed graphs."""
        return open_stages(folder, lambda place: self._open(place, threads))

    def _open(self, place: Path, threads: int) -> FileEngine:
        if self.runs_here:
            return TrtEngine(place / self.library.plan)
        return TypedGraphEngine(place / FILE, threads, self.library.engine)

    def _checked(self, model: Model, ctx: Context, folder: Path) -> dict[str, Any]:
        """Check every engine, and a cascade as a whole, against torch; return the notes.

        A row of a cascade may have the answer of either stage if its margin is so near to the
        threshold that the first engine's rounding may move it across.
        """
        found = []
        for x in engine_stages(model, ctx.workload):
            engine = self.engine(x.folder(folder), ctx.threads)
            found.append(self._parity(TorchReference(x.model, ctx.workload), engine, x.place))
        if model.second is None:
            return found[0]
        edge = 4 * found[0]["limit"]  # of two margins of two logits each
        whole, both = (
            TorchReference(model, ctx.workload, edge),
            self.engine(folder, ctx.threads),
        )
        cascade = self._parity(whole, both, "cascade", max(x["limit"] for x in found))
        return {**found[0], "second": found[1], "cascade": cascade}

    def _parity(
        self, reference: TorchReference, engine: Engine, what: str, least: float = 0
    ) -> dict[str, Any]:
        """Check parity with the torch module on the workload; return the notes."""
        parity = reference.compare(engine)
        limit = max(least, self.limit(reference.logits))
        if not parity.max_abs_diff <= limit:
            raise GateError(self._off(parity, limit, what))
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

    def _off(self, parity: Parity, limit: float, what: str) -> str:
        wider = {"bf16": "fp16", "fp16": "fp32", "int8": "fp16"}.get(self.precision)
        cure = f"use tensorrt{{precision={wider}}}, or " if wider else ""
        which = f"{self.precision}, {what}" if what else self.precision
        return (
            f"TensorRT ({which}) against the torch module: logits differ by up to "
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
