"""The `onnx` target: `model.onnx` for ONNX Runtime, checked against the torch module."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import onnx

from prumux.export.graph.graph import build
from prumux.export.graph.graph_file import FILE, is_large, save, verify
from prumux.export.graph.int8 import LEAST_HIDDEN, check_names, lower, lowered_names, sensitive
from prumux.export.graph.parity import Parity, above, check, check_finite, compare
from prumux.export.runtime.ort import CUDA, OrtEngine, gpu_providers
from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.errors import GateError, MissingError, PrumuxError, UsageError
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.ir import Encoder, Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.pipeline.target import Emitted, Target
from prumux.optimizer.timing.interleave import Timing, interleave, percentile_ms, speedup

from .graph import fusion as fusion_tool

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.context import Context

GAIN = 0.98
"""A fused graph must run in at most this share of the best simpler graph's time."""

FP16_MAX = 65504
"""The largest number that fp16 holds."""

Fusion = Literal["none", "basic", "all"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A graph that gave the right numbers."""

    fusion: Fusion
    proto: onnx.ModelProto
    engine: OrtEngine
    parity: Parity


@dataclass(frozen=True)
class Onnx(Target):
    """ONNX graph for ONNX Runtime, checked against the torch module before it is kept."""

    name: ClassVar[str] = "onnx"
    opset: int = field(default=17, metadata={"help": "version of the ONNX operators, 17..20"})
    fusion: Literal["auto", "none", "basic", "all"] = field(
        default="auto",
        metadata={"help": "ONNX Runtime's fusions: basic = all but attention, auto = by time"},
    )
    atol: float = field(
        default=1e-4, metadata={"help": "largest difference of a logit from the torch module"}
    )
    precision: Precision = field(
        default="auto",
        metadata={
            "help": "fp16, bf16 = all floats, for GPUs; int8 = weights and products, for "
            "CPUs; auto = fp32, or what is for the device where it pays"
        },
    )
    keep: tuple[str, ...] = field(
        default=(), metadata={"help": "maps that int8 leaves out, such as layers.0.ffn.down"}
    )
    device: Literal["cpu", "cuda"] = field(
        default="cpu", metadata={"help": "where ONNX Runtime runs it, here and in the report"}
    )

    def __post_init__(self) -> None:
        if not 17 <= self.opset <= 20:
            raise ValueError(f"opset must be 17..20, not {self.opset}")
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

    def check(self) -> None:
        """Look whether ONNX Runtime can run what is asked for.

        Raises:
            MissingError: it cannot; says what it can.
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

    def check_model(self, model: Model) -> None:
        """Look whether the model has what `keep` names.

        Raises:
            UsageError: it has not; names what it has.
        """
        if self.keep:
            check_names(self.keep, build(model, self.opset))

    @property
    def exact(self) -> bool:
        """Whether all is computed in float32."""
        return self.precision in ("auto", "fp32")

    def variants(self, encoder: Encoder) -> tuple[Onnx, ...]:
        """For `auto`, fp32 and, of a model that is large enough, int8, or on a GPU fp16."""
        if self.precision != "auto":
            return (self,)
        if encoder.hidden < LEAST_HIDDEN:
            return (self.baseline(),)
        fusion: Literal["auto", "none"] = "auto" if self.fusion == "auto" else "none"
        low: Precision = "int8" if self.device == "cpu" else "fp16"
        return self.baseline(), replace(self, precision=low, fusion=fusion)

    def baseline(self) -> Onnx:
        """The same in float32."""
        return replace(self, precision="fp32", keep=())

    def tuned(self, model: Model, ctx: Context) -> Onnx:
        """With int8, what is too sensitive for it is kept in float32."""
        if self.precision != "int8":
            return self
        if self.keep:
            self.check_model(model)
            return self
        return replace(self, keep=sensitive(model, self.opset, ctx))

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write `model.onnx`, and `model.onnx_data` where the weights are over 2 GB.

        Raises:
            GateError: ONNX Runtime's logits are off or not finite, or a fusion that was asked
                for fails.
            MissingError: ONNX Runtime is not installed, or cannot run the precision.
            UsageError: there is no workload to check the graph on.
        """
        self.check()
        if not ctx.workload:
            raise UsageError("no workload to check the graph on: give the context a batch")
        proto = build(model, self.opset)
        verify(proto)
        reference = _Reference(model, ctx.workload)
        plain = self._candidate("none", proto, reference, ctx.threads)
        if not self.exact:
            proto = self._lowered(model, plain.proto)
            verify(proto)
            parity = reference.compare(self._open(proto, ctx.threads))
            check_finite(parity, str(self), self._overflow)
            return Emitted(save(proto, folder), self._notes(proto, plain.parity, parity))
        found, dropped = self._fused(plain, model.encoder, reference, ctx.threads)
        auto = self.fusion == "auto" and len(found) > 1
        timings = _time(found, ctx.workload, ctx.cores) if auto else {}
        kept = _fastest(found, timings) if auto else found[-1]
        notes: dict[str, Any] = {
            "kept": kept.fusion,
            "parity": {c.fusion: c.parity.max_abs_diff for c in found},
            "agreement": {c.fusion: c.parity.agreement for c in found},
            "rows": plain.parity.rows,
            "fused": fusion_tool.counts(kept.proto),
            "workload_ms": {name: t.median_ms for name, t in timings.items()},
            "dropped": dropped,
        }
        return Emitted(save(kept.proto, folder), notes)

    def draft(self) -> Target:
        """The plain graph, written unchecked: the weights of a timing mean nothing."""
        same = {x.name: getattr(self, x.name) for x in fields(self)}
        return _Draft(**{**same, "fusion": "none"})

    def engine(self, folder: Path, threads: int) -> OrtEngine:
        """Load `model.onnx`."""
        return OrtEngine(folder / FILE, threads, self.providers)

    @property
    def providers(self) -> tuple[str, ...]:
        """What ONNX Runtime is to use besides the CPU."""
        return (CUDA,) if self.device == "cuda" else ()

    def bundle(self, model: Model, ctx: Context, folder: Path) -> None:
        """Write `triton/` around `model.onnx`, and `tensorrt.sh` with a graph for it."""
        from prumux.export.triton.repository import FOLDER, serving_point, write_bundle
        from prumux.export.trt.trtexec import write_script

        serving = serving_point(ctx.workload)
        if self.precision == "int8":  # its products are for CPUs
            serving = replace(serving, kind="KIND_CPU")
        write_bundle(model.encoder, model.task, folder / FILE, folder / FOLDER, serving)
        write_script(model, ctx.workload, folder)

    def _fused(
        self, plain: Candidate, encoder: Encoder, reference: _Reference, threads: int
    ) -> tuple[list[Candidate], dict[str, str]]:
        """The candidates that hold, simplest first, and why others do not."""
        asked: dict[str, tuple[Fusion, ...]] = {
            "auto": ("basic", "all"), "none": (), "basic": ("basic",), "all": ("all",)
        }  # fmt: skip
        found, dropped = [plain], dict[str, str]()
        for name in asked[self.fusion]:
            try:
                proto = fusion_tool.fuse(plain.proto, attention=name == "all")
                if name == "all":
                    _check_attention(proto, encoder)
                found.append(self._candidate(name, proto, reference, threads))
            except Exception as error:  # the tool raises anything from KeyError to asserts
                if self.fusion == "auto":
                    dropped[name] = _first_line(error)
                elif isinstance(error, (GateError, MissingError)):
                    raise
                else:
                    raise GateError(
                        f"fusion={name} failed: {_first_line(error)}\n"
                        "use onnx{fusion=auto}, which falls back to the plain graph"
                    ) from error
        return found, dropped

    def _lowered(self, model: Model, plain: onnx.ModelProto) -> onnx.ModelProto:
        """The graph in another precision. No gate of parity: its answers are certified."""
        if self.precision == "int8":
            return lower(plain, self.keep)
        if self.precision in ("fp16", "bf16"):
            return build(model, self.opset, self.precision)
        return plain

    def _open(self, proto: onnx.ModelProto, threads: int) -> OrtEngine:
        if not is_large(proto):
            return OrtEngine(proto.SerializeToString(), threads, self.providers)
        with tempfile.TemporaryDirectory() as folder:
            save(proto, Path(folder))
            return self.engine(Path(folder), threads)

    @property
    def _overflow(self) -> str:
        """What to do about logits that are not finite."""
        top = f"fp16 ends at {FP16_MAX}: " if self.precision == "fp16" else ""
        return (
            f"{top}use {replace(self, precision='fp32', keep=())}, "
            "or on a GPU tensorrt{precision=bf16}, which has the range of fp32"
        )

    def _notes(self, proto: onnx.ModelProto, plain: Parity, parity: Parity) -> dict[str, Any]:
        return {
            "kept": "none",
            "precision": self.precision,
            "parity": {"none": plain.max_abs_diff, self.precision: parity.max_abs_diff},
            "agreement": {"none": plain.agreement, self.precision: parity.agreement},
            "rows": parity.rows,
            "lowered": len(lowered_names(proto)) if self.precision == "int8" else None,
        }

    def _candidate(
        self, name: Fusion, proto: onnx.ModelProto, reference: _Reference, threads: int
    ) -> Candidate:
        engine = self._open(proto, threads)
        parity = reference.compare(engine)
        what = f"ONNX Runtime (fusion={name}) against the torch module"
        check(parity, self.atol, what, self._remedies(name, parity))
        return Candidate(name, proto, engine, parity)

    def _remedies(self, fusion: Fusion, parity: Parity) -> list[str]:
        """What may help a graph that is off, as this target would be written."""
        found = []
        if fusion != "none":
            found.append(f"export with fewer fusions: {replace(self, fusion='none')}")
        if math.isfinite(parity.max_abs_diff):
            wider = replace(self, atol=above(parity.max_abs_diff))
            found.append(f"accept it with a larger atol, say {wider}")
        return found


@dataclass(frozen=True)
class _Draft(Onnx):
    """Writes the plain graph and checks nothing."""

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write `model.onnx`."""
        del ctx
        return Emitted(save(self._lowered(model, build(model, self.opset)), folder))


class _Reference:
    """The torch module's logits on the workload, computed once."""

    def __init__(self, model: Model, workload: Sequence[Batch]) -> None:
        self.kind = model.task.kind
        self.inputs = [batch.inputs() for batch in workload]
        module = EncoderModule(model).eval()
        self.logits = [run(module, inputs) for inputs in self.inputs]

    def compare(self, engine: OrtEngine) -> Parity:
        """The parity of an engine."""
        found = [engine.run(inputs) for inputs in self.inputs]
        masks = [inputs["attention_mask"] for inputs in self.inputs]
        return compare(self.logits, found, self.kind, masks)


def attention_blocks(encoder: Encoder) -> int:
    """Attention blocks that can be fused: not the one that asks at one position only."""
    return sum(layer.heads > 0 for layer in encoder.layers) - (
        encoder.pool_early and encoder.last_attention >= 0
    )


def _check_attention(proto: onnx.ModelProto, encoder: Encoder) -> None:
    found = fusion_tool.counts(proto).get("Attention", 0)
    if found != attention_blocks(encoder):
        raise GateError(
            f"fusion=all: {found} of {attention_blocks(encoder)} attention blocks were fused "
            f"in {encoder}\nuse onnx{{fusion=auto}}, which falls back to the plain graph"
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0][:200]
    return text if isinstance(error, PrumuxError) else f"{type(error).__name__} {text}".strip()


def _time(
    found: Sequence[Candidate], workload: Sequence[Batch], cores: CoreMonitor
) -> dict[str, Timing]:
    inputs = [batch.inputs() for batch in workload]

    def all_batches(engine: OrtEngine) -> None:
        for batch in inputs:
            engine.run(batch)

    runs = [lambda engine=c.engine: all_batches(engine) for c in found]
    once_ms = interleave(runs[:1], rounds=1, cores=cores)[0].median_ms
    rounds = int(min(11, max(7, 2000 / max(once_ms, 1))))
    timings = interleave(runs, rounds=rounds, cores=cores)
    return {c.fusion: t for c, t in zip(found, timings, strict=True)}


def _fastest(found: Sequence[Candidate], timings: dict[str, Timing]) -> Candidate:
    """The fastest; a more fused graph only where it clearly pays, round by round."""
    best = found[0]
    for other in found[1:]:
        gain = speedup(timings[best.fusion], timings[other.fusion])
        # On a busy machine a median alone is luck: three rounds of four must be gains.
        if gain.median >= 1 / GAIN and percentile_ms(gain.rounds, 0.25) > 1:
            best = other
    return best
