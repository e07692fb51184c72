"""The `onnx` target: writes `model.onnx` for ONNX Runtime and checks it against torch.

prumux-opt MODEL --budget 2% --target 'onnx{precision=int8}'
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import onnx

from prumux.optimizer.base.errors import MissingError, UsageError
from prumux.optimizer.model.model import Model, SecondStage
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.pipeline.target import Emitted, Target
from prumux.optimizer.timing.interleave import Timing

from .graph import fusion as fusion_tool
from .graph.compose import compose
from .graph.graph import build
from .graph.graph_file import FILE, is_large, save, verify
from .graph.int8 import LEAST_HIDDEN, check_names, lower, lowered_names, sensitive
from .graph.parity import Parity, above, check, check_finite
from .runtime.fusion_choice import (
    FUSED,
    CheckedGraph,
    GraphChecker,
    SlowFusions,
    Variant,
    choose_graph,
    fastest,
    layout_of,
    layouts,
    time_graphs,
)
from .runtime.ort import CUDA, OrtEngine, gpu_providers
from .runtime.reference import TorchReference

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.context import Context

FP16_MAX = 65504
"""The largest finite number of fp16."""
OnnxPrecision = Literal["auto", "fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True)
class Onnx(Target):
    """Write an ONNX graph for ONNX Runtime, checked against the torch module."""

    name: ClassVar[str] = "onnx"
    opset: int = field(default=17, metadata={"help": "version of the ONNX operators, 17..23"})
    fusion: Literal["auto", "none", "basic", "all"] = field(
        default="auto",
        metadata={
            "help": "ONNX Runtime's fusions: basic = all but attention; auto = the fastest"
        },
    )
    atol: float = field(
        default=1e-4,
        metadata={"help": "largest absolute difference of a logit from the torch module"},
    )
    precision: OnnxPrecision = field(
        default="auto",
        metadata={
            "help": "fp16, bf16 = all floats, for GPUs; int8 = weights and products, for "
            "CPUs; auto = int8 on a CPU or fp16 on a GPU if faster, else fp32"
        },
    )
    keep: tuple[str, ...] = field(
        default=(),
        metadata={"help": "linear maps that int8 leaves in fp32, such as layers.0.ffn.down"},
    )
    device: Literal["cpu", "cuda"] = field(
        default="cpu", metadata={"help": "where ONNX Runtime runs the graph"}
    )
    ragged: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata={
            "help": "on = padding reaches attention alone, without loss; auto = on where the "
            "batches are padded and it is faster"
        },
    )
    triton: Literal["onnxruntime", "python"] = field(
        default="onnxruntime",
        metadata={
            "help": "backend in triton/; python = for servers without the onnxruntime backend"
        },
    )

    def __post_init__(self) -> None:
        if not 17 <= self.opset <= 23:
            raise ValueError(f"opset must be 17..23, not {self.opset}")
        if not self.atol > 0:
            raise ValueError(f"atol must be above 0, not {self.atol:g}")
        if self.keep and self.precision != "int8":
            raise ValueError(f"keep is for precision=int8, not {self.precision}")
        if self.precision == "int8" and self.device == "cuda":
            raise ValueError("precision=int8 is for device=cpu; use fp16, or tensorrt")
        if not self.exact and self.fusion in ("basic", "all"):
            raise ValueError(
                f"precision={self.precision} takes fusion=none, not {self.fusion}: "
                "fused attention is slower in int8, and untried in fp16 and bf16"
            )
        if self.ragged == "on" and self.fusion in ("basic", "all"):
            raise ValueError(
                f"ragged=on takes fusion=none, not {self.fusion}: ONNX Runtime fuses padded "
                "graphs only; ragged=auto keeps the faster one"
            )

    def check(self) -> None:
        """Check that ONNX Runtime can run the graph on the device, in the precision.

        Raises:
            MissingError: ONNX Runtime cannot run the graph; the message names possible
                targets.
        """
        if self.device == "cuda" and not gpu_providers():
            raise MissingError(
                f"{self}: ONNX Runtime finds no GPU that it can use\n"
                "pip install 'prumux[cuda]' on a machine with an NVIDIA GPU, or use "
                f"{replace(self, device='cpu')}"
            )
        if self.precision == "bf16" and self.device == "cpu":
            raise MissingError(
                f"{self}: ONNX Runtime has no bf16 kernels for CPUs\n"
                f"use {replace(self, precision='fp16')}, {replace(self, precision='fp32')}, "
                f"or on a GPU {replace(self, device='cuda')}"
            )

    def check_stages(self) -> None:
        """Accept cascades: ONNX Runtime runs them as one graph."""

    def check_model(self, model: Model) -> None:
        """Check that the model has the linear maps that `keep` names.

        Raises:
            UsageError: the model lacks a map; the message names two maps that it has.
        """
        if self.keep:
            check_names(self.keep, build(model, self.opset))

    @property
    def exact(self) -> bool:
        """True if the engine computes in fp32. Then it gives the torch module's answers."""
        return self.precision in ("auto", "fp32")

    def variants(self, encoder: Encoder) -> tuple[Onnx, ...]:
        """The concrete targets that `precision=auto` may resolve to, fp32 first.

        The second target is int8 on a CPU and fp16 on a GPU. Models with fewer than
        `LEAST_HIDDEN` hidden dimensions have fp32 only.
        """
        if self.precision != "auto":
            return (self,)
        if encoder.hidden < LEAST_HIDDEN:
            return (self.baseline(),)
        fusion: Literal["auto", "none"] = "auto" if self.fusion == "auto" else "none"
        low: OnnxPrecision = "int8" if self.device == "cpu" else "fp16"
        return self.baseline(), replace(self, precision=low, fusion=fusion)

    def baseline(self) -> Onnx:
        """The same target in fp32."""
        return replace(self, precision="fp32", keep=())

    @property
    def timed_as(self) -> str:
        """Name of this target in a costs file, by device and precision."""
        precision: OnnxPrecision = "fp32" if self.precision == "auto" else self.precision
        return str(Onnx(precision=precision, device=self.device))

    def layouts(self) -> tuple[Onnx, ...]:
        """This target in the padded and the ragged layout. Ragged graphs have no fusions."""
        fusion: Literal["auto", "none"] = "auto" if self.fusion == "auto" else "none"
        return replace(self, ragged="off"), replace(self, fusion=fusion, ragged="on")

    def tuned(self, model: Model, ctx: Context) -> Onnx:
        """Decide `ragged`, and for int8 put the most sensitive linear maps into `keep`.

        `ragged=auto` is decided once a run, by timing this model. All candidates must be
        scored in the layout that is shipped, because the range of an int8 value depends on it.
        """
        found = self
        if self.precision == "int8" and self.keep:
            self.check_model(model)
        elif self.precision == "int8":
            found = replace(self, keep=sensitive(model, self.opset, ctx))
        if len(layouts(self.ragged, ctx)) == 1:
            return found
        with tempfile.TemporaryDirectory() as folder:
            notes = found.emit(model, ctx, Path(folder)).notes
        decided = replace(found, ragged="on" if notes["layout"] == "ragged" else "off")
        times = ", ".join(f"{x} {ms:.3g} ms" for x, ms in notes["workload_ms"].items())
        ctx.progress.say(f"{decided}: a pass over the workload takes {times}")
        return decided

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write `model.onnx`, and `model.onnx_data` if the weights exceed 2 GB.

        Raises:
            GateError: ONNX Runtime's logits differ by more than `atol` or are not finite, or
                the fusion of the options fails.
            MissingError: ONNX Runtime is not installed, or cannot run the precision.
            UsageError: the context has no workload to check the graph on.
        """
        self.check()
        if not ctx.workload:
            raise UsageError("no workload to check the graph on: give the context a batch")
        if model.second is not None:
            return self._emit_cascade(model, model.second, ctx, folder)
        proto, notes = self._stage(model, ctx)
        return Emitted(save(proto, folder), notes)

    def _stage(self, model: Model, ctx: Context) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Build and check the graph of one model. Returns the graph and its notes."""
        checker = GraphChecker(
            TorchReference(model, ctx.workload),
            lambda proto: self._open(proto, ctx.threads),
            self.atol,
            self._remedies,
        )
        found = []
        for layout in layouts(self.ragged, ctx):
            proto = build(model, self.opset, ragged=layout == "ragged", states=True)
            verify(proto)
            found.append(checker.check(layout, proto))
        if self.exact:
            return self._fastest(found, checker, model.encoder, ctx)
        return self._in_precision(found, checker, model, ctx)

    def _emit_cascade(
        self, model: Model, second: SecondStage, ctx: Context, folder: Path
    ) -> Emitted:
        """Write both stages as one graph. Each stage is quantised, fused and checked alone."""
        one, notes = self._stage(replace(model, second=None), ctx)
        # The second stage is padded, because it gets few rows or none.
        two, more = replace(self, ragged="off")._stage(second.model, ctx)
        proto = compose(one, two, second)
        if not fusion_tool.counts(proto):  # the checker knows no fused operators
            verify(proto)
        parity = TorchReference(model, ctx.workload).compare(self._open(proto, ctx.threads))
        if self.exact:
            what = "ONNX Runtime (cascade) against the torch module"
            check(parity, self.atol, what, self._remedies("none", parity))
        else:
            check_finite(parity, str(self), self._overflow)
        cascade = {"max_abs_diff": parity.max_abs_diff, "agreement": parity.agreement}
        return Emitted(save(proto, folder), {**notes, "second": more, "cascade": cascade})

    def draft(self) -> Target:
        """A target that writes the plain graph unchecked, for timing random weights."""
        same = {x.name: getattr(self, x.name) for x in fields(self)}
        return _OnnxDraft(**{**same, "fusion": "none"})

    def engine(self, folder: Path, threads: int) -> OrtEngine:
        """Load `model.onnx`."""
        return OrtEngine(folder / FILE, threads, self.providers)

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime's execution providers that come before the CPU."""
        return (CUDA,) if self.device == "cuda" else ()

    def bundle(self, model: Model, ctx: Context, folder: Path) -> None:
        """Write `triton/` around `model.onnx`, and `tensorrt.sh` with a graph for it."""
        from .triton.repository import FOLDER, serving_point, write_bundle
        from .trt.trtexec import write_script

        serving = replace(serving_point(ctx.workload), backend=self.triton)
        if self.precision == "int8":  # its products run on CPUs only
            serving = replace(serving, kind="KIND_CPU")
        write_bundle(model.encoder, model.task, folder / FILE, folder / FOLDER, serving)
        if model.second is None:  # TensorRT would need two engines
            write_script(model, ctx.workload, folder)

    def _fastest(
        self,
        checked: Sequence[CheckedGraph],
        checker: GraphChecker,
        encoder: Encoder,
        ctx: Context,
    ) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The graph with the fusions and layout of the options; `auto` = the fastest graph."""
        slow = SlowFusions.of(encoder, self.opset, self.device, ctx)
        return choose_graph(checked, self.fusion, checker, encoder, ctx, slow)

    def _in_precision(
        self,
        checked: Sequence[CheckedGraph],
        checker: GraphChecker,
        model: Model,
        ctx: Context,
    ) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The graph in the precision of this target; `ragged=auto` = in the faster layout."""
        rivals = []
        for plain in checked:
            proto = self._lowered(model, plain.proto, ragged=plain.fusion == "ragged")
            verify(proto)
            engine = self._open(proto, ctx.threads)
            parity = checker.reference.compare(engine)
            check_finite(parity, str(self), self._overflow)
            rivals.append(CheckedGraph(plain.fusion, proto, engine, parity))
        timings: dict[Variant, Timing] = {}
        if len(rivals) > 1:
            timings = time_graphs(rivals, ctx.workload, ctx.cores)
        kept = fastest(rivals, timings) if timings else rivals[-1]
        notes = self._notes(kept, checked[0].parity)
        notes["workload_ms"] = {name: x.median_ms for name, x in timings.items()}
        return kept.proto, notes

    def _lowered(
        self, model: Model, plain: onnx.ModelProto, *, ragged: bool = False
    ) -> onnx.ModelProto:
        """Convert the graph to the precision of this target.

        Parity does not limit the logits of int8, fp16 and bf16: the certificate is about the
        answers of the converted engine itself.
        """
        if self.precision == "int8":
            return lower(plain, self.keep)
        if self.precision in ("fp16", "bf16"):
            return build(model, self.opset, self.precision, ragged=ragged)
        return plain

    def _open(self, proto: onnx.ModelProto, threads: int) -> OrtEngine:
        if not is_large(proto):
            return OrtEngine(proto.SerializeToString(), threads, self.providers)
        with tempfile.TemporaryDirectory() as folder:
            save(proto, Path(folder))
            return self.engine(Path(folder), threads)

    @property
    def _overflow(self) -> str:
        """Remedy in the error message about logits that are not finite."""
        top = f"fp16 ends at {FP16_MAX}: " if self.precision == "fp16" else ""
        return (
            f"{top}use {replace(self, precision='fp32', keep=())}, "
            "or on a GPU tensorrt{precision=bf16}, which has the range of fp32"
        )

    def _notes(self, kept: CheckedGraph, plain: Parity) -> dict[str, Any]:
        parity = kept.parity
        return {
            "kept": kept.fusion,
            "layout": layout_of(kept.fusion),
            "precision": self.precision,
            "parity": {"none": plain.max_abs_diff, self.precision: parity.max_abs_diff},
            "agreement": {"none": plain.agreement, self.precision: parity.agreement},
            "rows": parity.rows,
            "lowered": len(lowered_names(kept.proto)) if self.precision == "int8" else None,
        }

    def _remedies(self, fusion: Variant, parity: Parity) -> list[str]:
        """Remedies in the error message about wrong logits: targets that may help."""
        found = []
        if fusion in FUSED:
            found.append(f"export with fewer fusions: {replace(self, fusion='none')}")
        if math.isfinite(parity.max_abs_diff):
            wider = replace(self, atol=above(parity.max_abs_diff))
            found.append(f"accept it with a larger atol, say {wider}")
        return found


@dataclass(frozen=True)
class _OnnxDraft(Onnx):
    """A target that writes the plain graph without checks."""

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write `model.onnx`."""
        del ctx
        return Emitted(save(self._graph(model), folder))

    def _graph(self, model: Model) -> onnx.ModelProto:
        second = model.second
        if second is None:
            ragged = self.ragged == "on"
            plain = build(model, self.opset, ragged=ragged)
            return self._lowered(model, plain, ragged=ragged)
        first, padded = replace(model, second=None), replace(self, ragged="off")
        return compose(self._graph(first), padded._graph(second.model), second)
