"""Measure which parts of a model take an engine's time."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prumux.export.runtime.ort import CPU, session_options

RUNS = 3
PARTS = ("mux", "demux", "head", "layers", "mask")
LARGEST = 10


def kernel_shares(
    graph: bytes, threads: int, providers: tuple[str, ...], inputs: Mapping[str, Any]
) -> dict[str, float]:
    """Measure the share of each part of the model in ONNX Runtime's kernel time.

    Args:
        graph: a serialized graph that prumux wrote.
        threads: CPU threads of one run.
        providers: execution providers before the CPU.
        inputs: int64 [B, T] by input name.

    Returns:
        The share of the time, 0 to 1, by part: `embeddings`, one of `PARTS`, or `other`. The
        name of a node tells its part.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(graph, options, providers=[*providers, CPU])
        for _ in range(RUNS):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        name = event["name"]
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            embeds = "embeddings" in name
            parts = (part for part in PARTS if name.startswith(part))
            spent["embeddings" if embeds else next(parts, "other")] += event["dur"]
    return _shares(spent)


def operator_shares(run: Callable[[], object], device: str) -> dict[str, float]:
    """Share of a torch run's time of each of the `LARGEST` slowest operators."""
    import torch

    kinds = torch.profiler.ProfilerActivity
    cuda = device == "cuda"
    activities = [kinds.CPU, kinds.CUDA] if cuda else [kinds.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(RUNS):
            run()
        if cuda:
            torch.cuda.synchronize()
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    spent = {x.key: float(getattr(x, field)) for x in profile.key_averages()}
    return dict(sorted(_shares(spent).items(), key=lambda x: -x[1])[:LARGEST])


def _shares(spent: Mapping[str, float]) -> dict[str, float]:
    total = sum(spent.values()) or 1.0
    return {part: x / total for part, x in sorted(spent.items())}
