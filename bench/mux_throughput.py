"""What does mixing rows gain, and what do mux and demux cost?

    python bench/mux_throughput.py > bench/results/NAME.json

Random weights in the shape of MiniLM-L6, ONNX Runtime on the CPU, fp32. Every variant runs at
its own best batch, found first; then all are timed in one interleaved run. Where the time goes
is read from ONNX Runtime's profiler. `--share` removes that share of all heads and FFN units.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from prumux.export.graph import build
from prumux.export.ort import OrtEngine, session_options
from prumux.optimizer.cost import count
from prumux.optimizer.environment import cpu_threads, provenance
from prumux.optimizer.ir import Encoder, Layer, Masks, Model, Mux, Task, expected_shapes
from prumux.optimizer.measure import Timing, interleave, ratio

VARIANTS = ((1, 0), (2, 0), (5, 0), (10, 0), (2, 2), (2, 3), (5, 3), (10, 3))
"""n and the layer before which rows are mixed."""
BATCHES = (4, 8, 16, 32, 64, 128, 320)
"""Rows a run that are tried, filled up to whole groups."""
ROUNDS = 9
PARTS = ("mux", "demux", "head", "layers", "mask")


def shape(share: float, n: int, at: int) -> Encoder:
    """MiniLM-L6 without `share` of its heads and FFN units."""
    layer = Layer(max(1, round(12 * (1 - share))), max(1, round(1536 * (1 - share))))
    return Encoder(
        vocab=30522,
        positions=512,
        token_types=2,
        embedding=384,
        hidden=384,
        head_dim=32,
        layers=(layer,) * 6,
        labels=2,
        pool_early=True,
        mux=Mux(n, at) if n > 1 else None,
    )


def random_model(encoder: Encoder) -> Model:
    """Small random weights."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.02 * torch.randn(size, generator=generator)
        for name, size in expected_shapes(encoder).items()
    }
    task = Task("text-classification", "classification", ("no", "yes"))
    return Model(encoder, weights, task, Masks.full(encoder))


def inputs(rows: int, length: int) -> dict[str, Any]:
    """Full rows of random tokens."""
    ids = np.random.default_rng(0).integers(1, 30522, (rows, length))
    ones = np.ones_like(ids)
    return {"input_ids": ids, "attention_mask": ones, "token_type_ids": ones - 1}


def best_batch(engine: OrtEngine, n: int, length: int) -> int:
    """Rows a run at which most rows a second are done."""
    sizes = sorted({-(-b // n) * n for b in BATCHES})
    data = [inputs(b, length) for b in sizes]
    runs = [partial(engine.run, x) for x in data]
    timings = interleave(runs, 3)
    each = [t.low_ms / b for t, b in zip(timings, sizes, strict=True)]
    return sizes[int(np.argmin(each))]


def where(graph: bytes, batch: dict[str, Any], threads: int) -> dict[str, float]:
    """Share of the kernels' time by part of the model."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(graph, options)
        for _ in range(10):
            session.run(None, batch)
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        name = event["name"]
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            embeds = "embeddings" in name
            parts = (part for part in PARTS if name.startswith(part))
            spent["embeddings" if embeds else next(parts, "other")] += event["dur"]
    total = sum(spent.values())
    return {part: x / total for part, x in sorted(spent.items())}


def entry(
    n: int, at: int, *, share: float, length: int, batch: int, gain: Timing
) -> dict[str, Any]:
    """One line of the table."""
    cost = count(shape(share, n, at), length)
    return {
        "n": n,
        "at": at,
        "share_removed": share,
        "batch": batch,
        "throughput_ratio": gain.median_ms,
        "low": gain.low_ms,
        "high": gain.high_ms,
        "mux_parameters": cost.mux_parameters,
        "mux_macs_share": cost.mux_macs / cost.macs,
    }


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--share", type=float, default=0.0)
    options = parser.parse_args()
    threads, length, share = cpu_threads(), options.length, options.share
    graphs, engines, batches = [], [], []
    for n, at in VARIANTS:
        graph = build(random_model(shape(share, n, at))).SerializeToString()
        graphs.append(graph)
        engines.append(OrtEngine(graph, threads))
        batches.append(best_batch(engines[-1], n, length))
    # The same number of rows each round: small batches run more often.
    most = int(np.lcm.reduce(batches)) if len(set(batches)) < 3 else max(batches) * 4
    repeats = [max(1, round(most / b)) for b in batches]
    data = [inputs(b, length) for b in batches]
    runs = [
        lambda e=e, x=x, r=r: [e.run(x) for _ in range(r)]
        for e, x, r in zip(engines, data, repeats, strict=True)
    ]
    timings = interleave(runs, ROUNDS)
    per_row = [
        Timing(tuple(ms / (b * r) for ms in t.rounds_ms))
        for t, b, r in zip(timings, batches, repeats, strict=True)
    ]
    entries = []
    for (n, at), batch, graph, timing, x in zip(
        VARIANTS, batches, graphs, per_row, data, strict=True
    ):
        line = entry(
            n, at, share=share, length=length, batch=batch, gain=ratio(per_row[0], timing)
        )
        entries.append({**line, "time_shares": where(graph, x, threads)})
        shares = "  ".join(f"{k} {100 * v:.1f}" for k, v in entries[-1]["time_shares"].items())
        gain = f"{line['throughput_ratio']:.2f}x [{line['low']:.2f}, {line['high']:.2f}]"
        print(f"n={n:2} at={at} batch {batch:3} {gain}  % {shares}", file=sys.stderr)  # noqa: T201
    found = {
        "schema_version": 1,
        "length": length,
        "threads": threads,
        "entries": entries,
        **provenance(),
    }
    print(json.dumps(found, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
