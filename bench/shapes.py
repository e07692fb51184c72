"""Time the shapes of pruned and multiplexed models, with random weights.

    python bench/shapes.py > bench/results/NAME.json
    python bench/shapes.py --shape bert-base --engine ort-cuda --target 'onnx{precision=fp16}'
    python bench/shapes.py --shape bert-base --engine torch --device cuda --precision fp16
    python bench/shapes.py --sparsity 0 --at 0 3 --pool-early    # the cost of mux and demux

The table has the form of the table in the PruMUX paper (https://arxiv.org/abs/2305.14706):
sparsity of the encoder's weights x rows in one forward pass. `prune` chooses the sizes. Each
shape runs at its own best batch size, in turn with the unpruned model. `time_shares` is the
share of time of each part of the model. `ceiling_share` is the speed relative to one large
matrix product. On CUDA, use `time_shares` of torch: ONNX Runtime's profiler only records
launches there. ONNX Runtime is timed by the wall clock, with inputs and logits in host memory.
torch on a GPU is timed by CUDA events, with inputs on the device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prumux.export.benchmark.time_shares import kernel_shares, operator_shares
from prumux.export.runtime.ort import CUDA, OrtEngine
from prumux.export.runtime.torch_engine import FastModule
from prumux.optimizer.base.devices import device as there
from prumux.optimizer.base.environment import provenance
from prumux.optimizer.base.errors import PassError, PrumuxError
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.model.cost import count
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder, Layer, Multiplexing
from prumux.optimizer.model.weights import expected_shapes
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.pipeline.target import Target
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.timing.calibration import random_model
from prumux.optimizer.timing.interleave import Speedup, Timing, interleave, speedup, wall_ms
from prumux.passes.prune import Prune

SHAPES = {  # layers, heads, hidden, FFN units, vocabulary
    "minilm": (6, 12, 384, 1536, 30522),
    "bert-base": (12, 12, 768, 3072, 30522),
    "tiny": (2, 4, 32, 64, 500),
}
SPARSITIES = (0.0, 0.6, 0.8, 0.95)
MIXED = (1, 2, 5, 10)
BATCHES = {"cpu": (4, 8, 16, 32, 64), "cuda": (16, 64, 128, 256, 512, 1024)}
"""Batch sizes to try, in numbers of groups."""
WORSE = 1.05
"""The search ends at a batch size whose time per row is this multiple of the best time."""
LEAST_MS = 400.0
SCORE_ROWS, SCORE_TOKENS = 32, 32
"""Number and length of the rows for importance. Weights are random, so few rows are enough."""
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Inputs = dict[str, Any]
Run = Callable[[], object]
Shares = dict[str, float]


@dataclass(frozen=True, eq=False)
class ShapeEngine:
    """A model that is open in an engine."""

    prepare: Callable[[Inputs], Run]
    """Returns a function that runs the inputs."""
    shares: Callable[[Inputs], Shares]
    """Returns the share of time of each part of the model."""


@dataclass(frozen=True, eq=False)
class Ort:
    """Opens shapes in ONNX Runtime."""

    target: Target
    threads: int
    device: str

    def open(self, model: Model, ctx: Context) -> ShapeEngine:
        """Write the target's graph for timing, without checks, and open it."""
        providers = (CUDA,) * (self.device == "cuda")
        with tempfile.TemporaryDirectory() as folder:
            self.target.draft().emit(model, ctx, Path(folder))
            graph = (Path(folder) / "model.onnx").read_bytes()
        engine = OrtEngine(graph, self.threads, providers)
        return ShapeEngine(
            lambda inputs: partial(engine.run, inputs),
            partial(kernel_shares, graph, self.threads, providers),
        )


@dataclass(frozen=True, eq=False)
class Torch:
    """Opens shapes in torch, eager or compiled."""

    device: str
    precision: str
    compiled: bool

    def open(self, model: Model, ctx: Context) -> ShapeEngine:
        """Move the module to the device."""
        del ctx
        module: Any = FastModule(model).to(self.device, TYPES[self.precision]).eval()
        if self.compiled:
            module = torch.compile(module, mode="reduce-overhead")

        def prepare(inputs: Inputs) -> Run:
            given = {k: torch.as_tensor(v).to(self.device) for k, v in inputs.items()}

            def run() -> None:
                with torch.inference_mode():
                    module(**given)

            return run

        return ShapeEngine(
            prepare, lambda inputs: operator_shares(prepare(inputs), self.device)
        )


def cuda_ms(run: Run) -> float:
    """Milliseconds of a run on the GPU, by CUDA events."""
    event: Any = torch.cuda.Event  # untyped
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def dense_model(shape: str, length: int, pool_early: bool) -> Model:
    """An unpruned model of this shape, with random weights and LayerNorm scales near 1."""
    layers, heads, hidden, ffn, vocab = SHAPES[shape]
    encoder = Encoder(
        vocab=vocab,
        positions=max(512, length),
        token_types=2,
        embedding=hidden,
        hidden=hidden,
        head_dim=hidden // heads,
        layers=(Layer(heads, ffn),) * layers,
        labels=2,
        pool_early=pool_early,
    )
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.02 * torch.randn(size, generator=generator) + name.endswith("norm.weight")
        for name, size in expected_shapes(encoder).items()
    }
    task = Classification(("no", "yes"))
    return Model(encoder, weights, task, Masks.full(encoder))


def inputs_of(encoder: Encoder, rows: int, length: int) -> Inputs:
    """Random token ids without padding: int64 [rows, length] by input name."""
    ids = np.random.default_rng(0).integers(1, encoder.vocab, (rows, length))
    ones = np.ones_like(ids)
    return {"input_ids": ids, "attention_mask": ones, "token_type_ids": ones - 1}


def context(model: Model, length: int) -> Context:
    """A context with random rows for importance, and one row of the timed length."""
    given = inputs_of(model.encoder, SCORE_ROWS, min(SCORE_TOKENS, length))
    rows, types = Ragged.of(given["input_ids"]), Ragged.of(given["token_type_ids"])
    one = inputs_of(model.encoder, 1, length)
    batch = Batch(rows=np.arange(1), labels=None, **one)
    fit = Encoded(rows, types, None, model.encoder.pad_id)
    return Context(fit=fit, workload=(batch,), dense=model)


def pruned(model: Model, ctx: Context, sparsity: float) -> Encoder:
    """Return the sizes after `prune`."""
    masked = Prune(sparsity=sparsity).run(model, ctx)
    return masked.masks.sizes(masked.encoder)


@dataclass(frozen=True, eq=False)
class Cell:
    """A shape that is open in an engine, at its best batch size."""

    encoder: Encoder
    run: Run
    batch: int
    once_ms: float
    shares: Shares


@dataclass(frozen=True, eq=False)
class ShapeTimer:
    """Opens shapes, and times them in turn with the unpruned model."""

    engine: Ort | Torch
    ctx: Context
    length: int
    rounds: int
    batches: Sequence[int]
    least_ms: float

    @property
    def clock(self) -> Callable[[Run], float]:
        """The timing function: CUDA events for torch on a GPU, else the wall clock."""
        events = isinstance(self.engine, Torch) and self.engine.device == "cuda"
        return cuda_ms if events else wall_ms

    def open(self, encoder: Encoder) -> Cell:
        """Open a shape, and find its best batch size."""
        opened = self.engine.open(random_model(encoder, self.ctx), self.ctx)
        n, best, best_ms = encoder.slots, 0, float("inf")
        for batch in (x * n for x in self.batches):
            try:
                run = opened.prepare(inputs_of(encoder, batch, self.length))
                ms = interleave([run], 2, 1, clock=self.clock, cores=self.ctx.cores)[0].low_ms
                ms = ms / batch
            except Exception:  # engines raise different errors when memory runs out
                if not best:
                    raise
                break
            if ms < best_ms:
                best, best_ms = batch, ms
            elif ms > WORSE * best_ms:
                break
        inputs = inputs_of(encoder, best, self.length)
        run, once_ms = opened.prepare(inputs), best * best_ms
        return Cell(encoder, run, best, once_ms, opened.shares(inputs))

    def against(self, dense: Cell, cells: Sequence[Cell]) -> list[tuple[Timing, Speedup]]:
        """Milliseconds per row of each shape, and its speed-up over the unpruned shape."""
        every = [dense, *cells]
        repeats = [max(1, round(self.least_ms / max(x.once_ms, 1e-3))) for x in every]
        runs = [partial(_repeated, x.run, r) for x, r in zip(every, repeats, strict=True)]
        rows = [x.batch * r for x, r in zip(every, repeats, strict=True)]
        timings = interleave(runs, self.rounds, clock=self.clock, cores=self.ctx.cores)
        each = [
            Timing(tuple(ms / n for ms in t.rounds_ms))
            for t, n in zip(timings, rows, strict=True)
        ]
        return [(t, speedup(each[0], t)) for t in each[1:]]


def _repeated(run: Run, times: int) -> None:
    for _ in range(times):
        run()


def ceiling_flops(device: str, precision: str, size: int, clock: Any) -> float:
    """Measure the floating-point operations per second of one large matrix product."""
    a = torch.randn(size, size, device=device).to(TYPES[precision])
    best = interleave([lambda: a @ a], 10, 3, clock=clock)[0].low_ms
    return 2 * size**3 / (best / 1000)


def entry(cell: Cell, sparsity: float, each: Timing, gain: Speedup, length: int) -> Inputs:
    """The JSON result of one shape."""
    encoder, cost = cell.encoder, count(cell.encoder, length)
    return {
        "sparsity": sparsity,
        "n": encoder.slots,
        "at": encoder.mux.at if encoder.mux else 0,
        "batch": cell.batch,
        "rows_per_second": 1000 / each.median_ms,
        "throughput_ratio": gain.median,
        "low": gain.low,
        "high": gain.high,
        "macs_a_row": cost.macs,
        "mux_parameters": cost.mux_parameters,
        "mux_macs_share": cost.mux_macs / cost.macs,
        "layers": [asdict(x) for x in encoder.layers],
        "time_shares": cell.shares,
    }


def measure(
    bench: ShapeTimer, options: argparse.Namespace
) -> tuple[list[Inputs], dict[str, str]]:
    """Time all shapes, one sparsity at a time.

    Returns:
        The results, and the messages of the sparsities that `prune` refused.
    """
    model, found = bench.ctx.dense, list[Inputs]()
    refused: dict[str, str] = {}
    dense = bench.open(model.encoder)
    for sparsity in options.sparsity:
        try:
            sizes = pruned(model, bench.ctx, sparsity)
        except PassError as error:
            refused[f"{sparsity:g}"] = str(error)
            print(error, file=sys.stderr)  # noqa: T201
            continue
        variants = [(n, at) for n in options.n for at in (options.at if n > 1 else (0,))]
        shapes = [
            replace(sizes, mux=Multiplexing(n, at) if n > 1 else None) for n, at in variants
        ]
        # Timing the unpruned model against itself shows the noise.
        cells = [dense if x == dense.encoder else bench.open(x) for x in shapes]
        for cell, (each, gain) in zip(cells, bench.against(dense, cells), strict=True):
            found.append(entry(cell, sparsity, each, gain, bench.length))
            print(_line(found[-1]), file=sys.stderr)  # noqa: T201
    return found, refused


def _line(x: Inputs) -> str:
    gain = f"{x['throughput_ratio']:6.2f}x [{x['low']:.2f}, {x['high']:.2f}]"
    share = (
        f"  {100 * x['ceiling_share']:5.1f} % of the ceiling" if "ceiling_share" in x else ""
    )
    top = sorted(x["time_shares"].items(), key=lambda y: -y[1])[:5]
    parts = "  ".join(f"{k} {100 * v:.1f}" for k, v in top)
    cell = f"{100 * x['sparsity']:3.0f} %  n={x['n']:2} at={x['at']} batch {x['batch']:4}"
    return f"{cell} {x['rows_per_second']:9.0f} rows/s {gain}{share}  % of time: {parts}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="minilm")
    add("--engine", choices=["ort-cpu", "ort-cuda", "torch"], default="ort-cpu")
    add("--target", default="onnx", help="target that writes the graph")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="for torch")
    add(
        "--precision",
        choices=TYPES,
        default="fp32",
        help="of torch, and of the matrix product",
    )
    add("--compile", action="store_true", help="torch.compile, with CUDA graphs on a GPU")
    add("--sparsity", type=float, nargs="+", default=SPARSITIES)
    add("--n", type=int, nargs="+", default=MIXED)
    add("--at", type=int, nargs="+", default=(0,), help="layers before which rows are mixed")
    add("--pool-early", action="store_true", help="apply pool-early to all shapes")
    add("--length", type=int, default=128)
    add("--rounds", type=int, default=7)
    add(
        "--quick", action="store_true", help="one batch size and two rounds, to try the script"
    )
    options = parser.parse_args()
    layers = SHAPES[options.shape][0]
    if min(options.n) < 1 or not all(0 <= x < layers for x in options.at):
        parser.error(f"--n counts rows from 1, --at the {layers} layers from 0")
    return options


def main() -> None:
    """Measure, print one JSON document to stdout and a table to stderr."""
    options = _options()
    threads, device = cpu_threads(), options.device
    torch.set_num_threads(threads)
    try:
        if options.engine != "torch":
            device = "cuda" if options.engine == "ort-cuda" else "cpu"
        there(device)
        engine: Ort | Torch = Torch(device, options.precision, options.compile)
        if options.engine != "torch":
            engine = Ort(parse_target(options.target), threads, device)
        model = dense_model(options.shape, options.length, options.pool_early)
        ctx = replace(context(model, options.length), threads=threads)
        batches = (1,) if options.quick else BATCHES[device]
        rounds = 2 if options.quick else options.rounds
        least_ms = 1.0 if options.quick else LEAST_MS
        bench = ShapeTimer(engine, ctx, options.length, rounds, batches, least_ms)
        entries, refused = measure(bench, options)
    except (PrumuxError, ValueError) as error:
        sys.exit(f"{error}")
    size = 256 if options.quick else {"cpu": 2048, "cuda": 8192}[device]
    clock = cuda_ms if device == "cuda" else wall_ms
    flops = ceiling_flops(device, options.precision, size, clock)
    for x in entries:
        x["ceiling_share"] = 2 * x["macs_a_row"] * x["rows_per_second"] / flops
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    found = {
        "schema_version": 1,
        "shape": options.shape,
        "engine": options.engine,
        "target": str(engine.target) if isinstance(engine, Ort) else None,
        "precision": options.precision,
        "compiled": options.compile,
        "timing": "CUDA events" if bench.clock is cuda_ms else "wall clock",
        "length": options.length,
        "threads": threads,
        "gpu": gpu,
        "ceiling": {"flops": flops, "matrix": size, "precision": options.precision},
        "entries": entries,
        "not_possible": refused,
        **provenance(ctx.cores),
    }
    print(json.dumps(found, indent=2))  # noqa: T201
    print("\n".join(map(_line, entries)), file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
