"""Part a: does an engine run on this device, give torch's answers, and how fast is it?

So that times are comparable, all engines read inputs from host memory and write logits to host
memory, and all are timed by the wall clock. The ceiling is the speed of one large matrix
product in the same precision.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.shapes import ceiling_flops, context, cuda_ms, dense_model, pruned
from prumux.export.graph.parity import TOLERANCES, compare
from prumux.optimizer.base.errors import MissingError
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.cost import count
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.module import run as module_run
from prumux.optimizer.model.row_groups import batch_rows
from prumux.optimizer.model.sizes import Encoder, Layer, Multiplexing
from prumux.optimizer.model.weights import expected_shapes
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.timing.interleave import wall_ms

from .torch_runs import CompiledBert, TorchRun
from .work import Facts, Work, say

KINDS = {
    "cuda": {
        "rtx": "tensorrt{flavor=rtx precision=PRECISION}",
        "torch-graph": "",
        "ort-cuda": "onnx{precision=PRECISION device=cuda fusion=none}",
        "tensorrt": "tensorrt{flavor=tensorrt precision=PRECISION}",
        "torch-compile": "",
    },
    "cpu": {
        "ort-cpu": "onnx{precision=PRECISION fusion=none}",
        "torch": "",
        "torch-compile": "",
    },
}
"""Targets of engines by device, the most valuable engine first; empty = torch itself."""
COMPILED = "torch-compile"
BEFORE_COMPILED = 4
"""Number of cells to measure before `torch.compile`, because compiling takes minutes."""
CELLS = (
    *((0.0, 1), (0.8, 1), (0.0, 2), (0.95, 1), (0.6, 1), (0.8, 2), (0.0, 5), (0.95, 10)),
    *((0.0, 10), (0.95, 2), (0.6, 2), (0.8, 5), (0.95, 5), (0.6, 5), (0.8, 10), (0.6, 10)),
)
"""Sparsity of the encoder's weights, and rows in one pass; the most valuable cell first."""
PARITY_ROWS, PARITY_TOKENS = 20, 48
LEAST_RUNS = 5
Inputs = dict[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]


@dataclass(frozen=True)
class Plan:
    """The measurements of part a."""

    device: str
    precision: str = "fp16"
    shapes: tuple[str, ...] = ("minilm", "bert-base")
    cells: tuple[tuple[float, int], ...] = CELLS
    compiled: bool = True
    """True = also time `torch.compile` on the unpruned shapes."""
    batches: tuple[int, ...] = (1, 32, 128, 512)
    lengths: tuple[int, ...] = (32, 128)
    seconds: float = 0.4
    """Seconds for which each batch size and length is timed."""
    matrix: int = 8192
    """Number of rows of the matrix product that gives the ceiling."""

    def items(self) -> list[tuple[str, float, int, str]]:
        """Shape, sparsity, rows in a pass and engine of each item, most valuable first."""
        kinds = [x for x in KINDS[self.device] if x != COMPILED]
        cells = [
            (shape, s, n, k) for s, n in self.cells for shape in self.shapes for k in kinds
        ]
        compiled = [(shape, 0.0, 1, COMPILED) for shape in self.shapes]
        first = BEFORE_COMPILED * len(self.shapes) * len(kinds)
        return cells[:first] + (compiled if self.compiled else []) + cells[first:]

    def sizes(self, kind: str) -> tuple[int, ...]:
        """Batch sizes to time. Only the largest if each size needs compiling."""
        return (max(self.batches),) if kind == COMPILED else self.batches


def run(plan: Plan, work: Work) -> None:
    """Measure items in order until the time is over."""
    absent = missing(plan.device, plan.precision)
    work.keep("a-missing", {"missing": absent})
    for shape, sparsity, n, kind in plan.items():
        if kind in absent:
            continue
        name = f"a-{shape}-{round(100 * sparsity)}-{n}-{kind}"
        item = Item(plan, work, name, shape, sparsity, n, kind)
        if not work.attempt(name, item.measure):
            say("part a: the time is over")
            return


@dataclass(frozen=True)
class Item:
    """A shape to measure in an engine."""

    plan: Plan
    work: Work
    name: str
    shape: str
    sparsity: float
    n: int
    kind: str

    def measure(self) -> Facts | None:
        """Open the engine, compare its logits, and time each batch and length."""
        model = self.model()
        ctx = serving(model, self.plan, self.n)
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            run, about = self.open(model, ctx, Path(folder))
            about["open_seconds"] = round(time.monotonic() - start, 2)
            found: Facts = {**self.about(model), **about, "points": []}
            found["parity"] = self.parity(run, model)
            found["ceiling_tflops"] = self.ceiling() / 1e12
            macs = {x: count(model.encoder, x).macs for x in self.plan.lengths}
            for length in self.plan.lengths:
                for batch in self.plan.sizes(self.kind):
                    if self.work.left_s <= 0:
                        self.work.keep(self.name, {**found, "unfinished": True})
                        return None
                    point = self.point(run, model.encoder, batch, length)
                    flops = 2 * macs[length] * point["rows_per_second"]
                    share = flops / 1e12 / found["ceiling_tflops"]
                    found["points"].append({**point, "ceiling_share": share})
        return found

    def about(self, model: Model) -> Facts:
        """The facts of this item."""
        return {
            "shape": self.shape,
            "sparsity": self.sparsity,
            "n": self.n,
            "kind": self.kind,
            "precision": self.plan.precision,
            "layers": [[x.heads, x.ffn] for x in model.encoder.layers],
        }

    def model(self) -> Model:
        """A model with random weights, the sizes after `prune`, and mixed rows."""
        dense = dense_model(self.shape, max(self.plan.lengths), pool_early=False)
        # No more positions than the longest row has: an engine reserves memory for all.
        positions = max(PARITY_TOKENS, *self.plan.lengths)
        encoder = replace(dense.encoder, layers=self.layers(dense), positions=positions)
        if self.n > 1:
            encoder = replace(encoder, mux=Multiplexing(self.n))
        generator = torch.Generator().manual_seed(0)
        weights = {
            name: _random(name, size, generator)
            for name, size in expected_shapes(encoder).items()
        }
        return Model(encoder, weights, dense.task, Masks.full(encoder))

    def layers(self, dense: Model) -> tuple[Layer, ...]:
        """The sizes after `prune`. They are chosen once for each shape and sparsity."""
        if not self.sparsity:
            return dense.encoder.layers
        name = f"sizes-{self.shape}-{round(100 * self.sparsity)}"
        if (found := self.work.read(name)) is None:
            ctx = context(dense, PARITY_TOKENS)
            chosen = pruned(dense, ctx, self.sparsity).layers
            found = {"layers": [[x.heads, x.ffn] for x in chosen]}
            self.work.keep(name, found)
        return tuple(Layer(*x) for x in found["layers"])

    def open(self, model: Model, ctx: Context, folder: Path) -> tuple[Run, Facts]:
        """Open the engine; return it as a function, and its facts."""
        text = KINDS[self.plan.device].get(self.kind, "")
        if self.kind == COMPILED:
            return CompiledBert(self.shape, self.plan.device, self.plan.precision), {
                "engine": self.torch_facts()
            }
        if not text:
            torch_run = TorchRun(model, self.plan.device, self.plan.precision, self.kind)
            return torch_run, {"engine": self.torch_facts()}
        target = parse_target(text.replace("PRECISION", self.plan.precision))
        target.check()
        emitted = target.draft().emit(model, ctx, folder)
        engine = target.engine(folder, ctx.threads)
        size = sum((folder / x).stat().st_size for x in emitted.files)
        return engine.run, {"engine": dict(engine.describe()), "file_mb": round(size / 1e6, 1)}

    def torch_facts(self) -> dict[str, str]:
        """Facts of a torch engine: kind, version, device and precision."""
        cuda = self.plan.device == "cuda"
        device = torch.cuda.get_device_name() if cuda else "cpu"
        facts = {"engine": self.kind, "version": str(torch.__version__), "device": device}
        return {**facts, "precision": self.plan.precision}

    def parity(self, run: Run, model: Model) -> Facts:
        """Compare the logits with those of the torch module in fp32 on the CPU."""
        inputs = parity_batch(model).inputs()
        if isinstance(run, CompiledBert):
            expected = run.expected(inputs)
        else:
            expected = module_run(EncoderModule(model).eval(), inputs)
        answers = np.asarray(run(inputs), dtype=np.float32)
        found = compare([expected], [answers], model.task)
        limit = TOLERANCES[self.plan.precision] * max(1.0, float(np.abs(expected).max()))
        return {
            "max_abs_diff": found.max_abs_diff,
            "limit": limit,
            "holds": bool(found.max_abs_diff <= limit),
            "agreement": found.agreement,
            "rows": found.rows,
        }

    def ceiling(self) -> float:
        """Measure the operations per second of one large matrix product."""
        clock = cuda_ms if self.plan.device == "cuda" else wall_ms
        return ceiling_flops(self.plan.device, self.plan.precision, self.plan.matrix, clock)

    def point(self, run: Run, encoder: Encoder, batch: int, length: int) -> Facts:
        """Throughput at a length and a batch size. The batch is rounded up to whole groups."""
        rows = batch_rows(batch + self.n - 1, self.n)
        inputs = random_inputs(encoder, rows, length)
        times = timed_ms(lambda: run(inputs), self.plan.seconds)
        return {
            "batch": rows,
            "length": length,
            "ms": median(times),
            "rows_per_second": 1000 * rows / median(times),
            "rows_per_second_low": 1000 * rows / max(times),
            "rows_per_second_high": 1000 * rows / min(times),
            "runs": len(times),
        }


def _random(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draw normal weights that keep values and logits near 1, within the range of fp16."""
    drawn = torch.randn(size, generator=generator)
    if len(size) > 1:
        return drawn if name.startswith("embeddings") else drawn / size[-1] ** 0.5
    return 0.1 * drawn + float(name.endswith("norm.weight"))


def serving(model: Model, plan: Plan, n: int) -> Context:
    """A context with a workload of the largest batch at each length."""
    ctx = context(model, max(plan.lengths))
    rows = batch_rows(max(plan.batches) + n - 1, n)
    work = [_batch(random_inputs(model.encoder, rows, x)) for x in plan.lengths]
    return replace(ctx, workload=tuple(work), threads=torch.get_num_threads())


def random_inputs(encoder: Encoder, rows: int, length: int, seed: int = 0) -> Inputs:
    """Random token ids without padding: int64 [rows, length] by input name."""
    ids = np.random.default_rng(seed).integers(1, encoder.vocab, (rows, length))
    ones = np.ones_like(ids)
    return {"input_ids": ids, "attention_mask": ones, "token_type_ids": ones - 1}


def parity_batch(model: Model) -> Batch:
    """A padded batch of rows of unequal length."""
    inputs = random_inputs(model.encoder, PARITY_ROWS, PARITY_TOKENS, seed=1)
    lengths = np.random.default_rng(2).integers(4, PARITY_TOKENS + 1, PARITY_ROWS)
    mask = (np.arange(PARITY_TOKENS) < lengths[:, None]).astype(np.int64)
    return _batch({k: x * mask for k, x in inputs.items()})


def _batch(inputs: Inputs) -> Batch:
    return Batch(rows=np.arange(len(inputs["input_ids"])), labels=None, **inputs)


def timed_ms(call: Callable[[], object], seconds: float) -> list[float]:
    """Run for about `seconds`, at least `LEAST_RUNS` times; return each run's milliseconds."""
    for _ in range(2):
        call()
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < LEAST_RUNS:
        times.append(wall_ms(call))
    return times


def missing(device: str, precision: str) -> dict[str, str]:
    """Engines that do not run on this device, each with the reason."""
    found = {}
    for kind, text in KINDS[device].items():
        if text:
            try:
                parse_target(text.replace("PRECISION", precision)).check()
            except MissingError as error:
                found[kind] = str(error).split("\n")[0]
    return found
