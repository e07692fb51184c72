"""Choose between the plain ONNX graph, its fused forms, and the ragged graph.

A fused graph must give the torch module's logits. With `fusion=auto` the graphs are then timed
in turn on the serving workload. A fused graph is kept only if it is clearly faster. Most fused
graphs are slower on CPUs. To save time, prumux stops timing a graph that has lost too many
rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import onnx
from numpy.typing import NDArray

from prumux.export.graph import fusion as fusion_tool
from prumux.export.graph.parity import Parity, check
from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.environment import device, versions
from prumux.optimizer.base.errors import GateError, MissingError, PrumuxError
from prumux.optimizer.base.store import key
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.target import Engine
from prumux.optimizer.timing.interleave import Timing, interleave, percentile_ms, speedup

from .ort import OrtEngine
from .reference import TorchReference

Fusion = Literal["none", "basic", "all"]
Variant = Literal["none", "basic", "all", "ragged"]
"""A padded graph, named by its fusion; or the ragged graph, which is never fused."""
FUSED: tuple[Fusion, ...] = ("basic", "all")
LEAST_PADDING = 1.1
"""Fewest positions per real token for which the ragged layout is timed."""
GAIN = 0.98
"""A fused graph must run in at most this share of the time of the best simpler graph."""
LOSING_SHARE = 0.25
"""A fused graph is not kept if it is slower in at least this share of the rounds."""
BLOCK_ROUNDS = 2
"""Number of rounds after which slow graphs are dropped. It is even, because `interleave` runs
every second round in reverse order."""
ROUNDS = range(7, 12)
"""Total number of rounds. It is higher if a pass over the workload is short."""
TIMING_MS = 2000
"""Total time of the rounds of one graph, if `ROUNDS` allows it."""


@dataclass(frozen=True, eq=False)
class CheckedGraph:
    """A graph that is open in ONNX Runtime. Its logits agree with the torch module's."""

    fusion: Variant
    proto: onnx.ModelProto
    engine: OrtEngine
    parity: Parity


@dataclass(frozen=True, eq=False)
class GraphChecker:
    """Opens graphs of one model and compares their logits with the torch module's."""

    reference: TorchReference
    open: Callable[[onnx.ModelProto], OrtEngine]
    atol: float
    """Largest allowed absolute difference of a logit."""
    remedies: Callable[[Variant, Parity], list[str]]
    """Gives remedies for the error message about a larger difference."""

    def check(self, fusion: Variant, proto: onnx.ModelProto) -> CheckedGraph:
        """Open a graph and compare its logits.

        Raises:
            GateError: a logit differs by more than `atol`.
        """
        engine = self.open(proto)
        parity = self.reference.compare(engine)
        how = "ragged=on" if fusion == "ragged" else f"fusion={fusion}"
        what = f"ONNX Runtime ({how}) against the torch module"
        check(parity, self.atol, what, self.remedies(fusion, parity))
        return CheckedGraph(fusion, proto, engine, parity)


def padding(workload: Sequence[Batch]) -> float:
    """Positions per real token of batches: 1 = no padding, 2 = half of them are padding."""
    places = sum(x.attention_mask.size for x in workload)
    return places / max(1, sum(int(x.attention_mask.sum()) for x in workload))


def layouts(ragged: Literal["auto", "on", "off"], ctx: Context) -> tuple[Variant, ...]:
    """The layouts to export, by the option `ragged`. Both are exported if times decide.

    Rows that are sorted by length have almost no padding. They are not timed in both layouts.
    """
    if ragged == "auto" and ctx.arrivals == "mixed" and padding(ctx.workload) >= LEAST_PADDING:
        return ("none", "ragged")
    return ("ragged",) if ragged == "on" else ("none",)


def layout_of(variant: Variant) -> str:
    """The layout of a graph: `ragged` or `padded`."""
    return "ragged" if variant == "ragged" else "padded"


def fuse(
    plain: CheckedGraph, fusion: Fusion, encoder: Encoder, checker: GraphChecker
) -> CheckedGraph:
    """Apply a fusion to the plain graph, and check the result.

    Raises:
        GateError: the fusion tool failed, an attention block was not fused, or a logit differs
            by more than the checker allows.
        MissingError: ONNX Runtime is not installed.
    """
    try:
        proto = fusion_tool.fuse(plain.proto, attention=fusion == "all")
        if fusion == "all":
            _check_attention(proto, encoder)
        return checker.check(fusion, proto)
    except (GateError, MissingError):
        raise
    except Exception as error:  # the tool raises anything from KeyError to AssertionError
        raise GateError(
            f"fusion={fusion} failed: {_first_line(error)}\n"
            "use onnx{fusion=auto}, which falls back to the plain graph"
        ) from error


def try_fusions(
    plain: CheckedGraph, fusions: Sequence[Fusion], encoder: Encoder, checker: GraphChecker
) -> tuple[list[CheckedGraph], dict[str, str]]:
    """Apply fusions to a graph, and leave out fusions that fail.

    Returns:
        The graphs that agree with the torch module, `plain` first; and the reason for each
        fusion that failed.
    """
    found, failed = [plain], dict[str, str]()
    for fusion in fusions:
        try:
            found.append(fuse(plain, fusion, encoder, checker))
        except PrumuxError as error:
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            failed[fusion] = _first_line(cause)
    return found, failed


def time_graphs(
    graphs: Sequence[CheckedGraph], workload: Sequence[Batch], cores: CoreMonitor
) -> dict[Variant, Timing]:
    """Time graphs in turn, and drop a fused graph as soon as `fastest` cannot keep it.

    `fastest` keeps a fused graph only if it is faster than the plain graph in more than three
    quarters of the rounds. A graph that has lost too many rounds for this is not timed any
    more. So a slow fusion costs two to four rounds instead of seven to eleven.

    Args:
        graphs: the plain graph first.
        workload: batches of one round.
        cores: waits until threads run on cores near each other, before each round.

    Returns:
        Milliseconds of a pass over the workload, round by round. A dropped graph has fewer
        rounds than the plain graph.
    """
    inputs = [batch.inputs() for batch in workload]
    rounds_ms: dict[Variant, list[float]] = {x.fusion: [] for x in graphs}
    plain_ms = rounds_ms[graphs[0].fusion]
    timed, total = list(graphs), 0
    while len(timed) > 1 and len(plain_ms) < (total or 1):
        rounds = min(BLOCK_ROUNDS, total - len(plain_ms)) if total else BLOCK_ROUNDS
        runs = [partial(_pass_over, x.engine, inputs) for x in timed]
        found = interleave(runs, rounds=rounds, warmup=0 if total else 1, cores=cores)
        for x, timing in zip(timed, found, strict=True):
            rounds_ms[x.fusion] += timing.rounds_ms
        total = total or _round_count(min(plain_ms))
        most = math.ceil(LOSING_SHARE * total) - 1
        timed = timed[:1] + [
            x for x in timed[1:] if _lost(rounds_ms[x.fusion], plain_ms) <= most
        ]
    return {name: Timing(tuple(x)) for name, x in rounds_ms.items()}


def fastest(graphs: Sequence[CheckedGraph], timings: Mapping[Variant, Timing]) -> CheckedGraph:
    """The fastest graph. A fused graph must be clearly faster, round by round.

    On a busy machine a median alone depends on chance. So a fused graph must also be faster in
    more than three quarters of the rounds.
    """
    best, rounds = graphs[0], len(timings[graphs[0].fusion].rounds_ms)
    for other in graphs[1:]:
        if len(timings[other.fusion].rounds_ms) < rounds:
            continue  # dropped by `time_graphs`
        gain = speedup(timings[best.fusion], timings[other.fusion])
        steady = percentile_ms(gain.rounds, LOSING_SHARE) > 1
        if gain.median >= 1 / GAIN and steady:
            best = other
    return best


@dataclass(frozen=True)
class SlowFusions:
    """Fusions that were too slow for a model of this run, remembered in the run's store.

    The given model is exported first. If a fusion was slower for the given model, it is not
    tried on models that differ only in the number of layers, heads and FFN units. In every run
    recorded so far, a fusion slowed the pruned graph down more than the given model's graph.
    """

    ctx: Context
    name: str
    """Name of the entry in the store."""

    @classmethod
    def of(cls, encoder: Encoder, opset: int, provider: str, ctx: Context) -> SlowFusions:
        """The entry for `encoder` and models with other layers, heads and FFN units."""
        shape = encoder.hidden, encoder.head_dim, encoder.activation, encoder.slots
        work = [batch.input_ids.shape for batch in ctx.workload]
        about = key(shape, work, ctx.threads, opset, provider, device(), versions())
        return cls(ctx, f"fusions-{about}")

    def known(self) -> dict[str, float]:
        """Time of each slow fusion, relative to the plain graph; empty before an export."""
        if not self.ctx.store.has(self.name):
            return {}
        found: dict[str, float] = self.ctx.store.json(self.name, dict)
        return found

    def remember(self, timings: Mapping[Variant, Timing]) -> None:
        """Store the fusions that `time_graphs` dropped or that were slower in the median."""
        plain = timings["none"]
        slower = {
            name: round(x.median_ms / plain.median_ms, 3)
            for name, x in timings.items()
            if name in FUSED
            and (len(x.rounds_ms) < len(plain.rounds_ms) or x.median_ms > plain.median_ms)
        }
        self.ctx.store.json(self.name, lambda: slower)


def attention_blocks(encoder: Encoder) -> int:
    """Number of attention blocks that can be fused.

    With early pooling, the last block has one query position and cannot be fused.
    """
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


def _pass_over(engine: Engine, inputs: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    for batch in inputs:
        engine.run(batch)


def _round_count(once_ms: float) -> int:
    return int(min(ROUNDS[-1], max(ROUNDS[0], TIMING_MS / max(once_ms, 1))))


def _lost(fused_ms: Sequence[float], plain_ms: Sequence[float]) -> int:
    """Number of rounds in which the fused graph was not faster."""
    return sum(a >= b for a, b in zip(fused_ms, plain_ms, strict=True))


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0][:200]
    return text if isinstance(error, PrumuxError) else f"{type(error).__name__} {text}".strip()


def choose_graph(  # noqa: PLR0917 - a choice and all that it depends on
    checked: Sequence[CheckedGraph],
    fusion: Literal["auto"] | Fusion,
    checker: GraphChecker,
    encoder: Encoder,
    ctx: Context,
    slow: SlowFusions,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Choose the graph with the fusions and layout of the options; return it and its notes.

    Args:
        checked: the plain graph: padded, ragged or both.
        fusion: `auto` = the fastest graph.
        checker: checks fused graphs.
        encoder: the sizes. Fusions need them.
        ctx: contains the workload to time on.
        slow: fusions that were slow in this run.
    """
    padded = [x for x in checked if x.fusion != "ragged"]
    ragged = [x for x in checked if x.fusion == "ragged"]
    dropped = dict[str, str]()
    asked: Fusion = "none" if fusion == "auto" else fusion
    if padded and fusion == "auto":
        known = slow.known()
        fusions = [x for x in FUSED if x not in known]
        padded, dropped = try_fusions(padded[0], fusions, encoder, checker)
        dropped |= {
            x: f"takes {known[x]:.2f} times the plain graph's time, not tried again"
            for x in known
        }
    elif padded and asked != "none":
        padded.append(fuse(padded[0], asked, encoder, checker))
    found = [*padded, *ragged]
    rivals = found if fusion == "auto" else [*padded[-1:], *ragged]
    timings: dict[Variant, Timing] = {}
    if len(rivals) > 1:
        timings = time_graphs(rivals, ctx.workload, ctx.cores)
        if padded and fusion == "auto":
            slow.remember(timings)
    kept = fastest(rivals, timings) if timings else rivals[-1]
    return kept.proto, {
        "kept": kept.fusion,
        "layout": layout_of(kept.fusion),
        "parity": {x.fusion: x.parity.max_abs_diff for x in found},
        "agreement": {x.fusion: x.parity.agreement for x in found},
        "rows": found[0].parity.rows,
        "fused": fusion_tool.counts(kept.proto),
        "workload_ms": {name: x.median_ms for name, x in timings.items()},
        "dropped": dropped,
    }
