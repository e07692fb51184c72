"""A recorded report, and others made of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from prumux.optimizer.report.contents import Report
from prumux.optimizer.report.encoding import report_of

RESULTS = Path(__file__).parents[2] / "bench" / "results"
TASK = {"kind": "text-classification", "problem": "classification"}
SPEED = (
    "rows_per_second", "rows_per_second_low", "rows_per_second_high",
    "latency_ms_p50", "latency_ms_p90", "latency_ms_p99",
    "throughput_ratio", "throughput_ratio_low", "throughput_ratio_high",
)  # fmt: skip


def recorded(name: str = "sst2-standard-2cpu") -> dict[str, Any]:
    """A report.json of a real run."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def as_report(values: dict[str, Any]) -> Report:
    """The report of the values of a report.json."""
    return report_of(values, "report.json")


def engine(pipeline: str, target: str, ratio: float) -> dict[str, Any]:
    """An engine that was timed and not shipped."""
    return {
        "pipeline": pipeline,
        "target": target,
        "file_bytes": 10_000_000,
        **dict.fromkeys(SPEED, ratio),
    }


def one_class(label: str, rows: int, found: tuple[int, int]) -> dict[str, Any]:
    """A class of which the given and the shipped model found so many rows."""
    both = ("dense", "optimised")
    return {
        "label": label,
        "rows": rows,
        "found": dict(zip(both, found, strict=True)),
        "answered": dict(zip(both, (found[0] + 3, found[1] + 5), strict=True)),
        "recall": {k: n / rows if rows else None for k, n in zip(both, found, strict=True)},
    }


def changed(name: str) -> dict[str, Any]:  # noqa: PLR0912 - a branch for each kind
    """A report of another kind of run, by name."""
    report = copy.deepcopy(recorded())
    if name == "refused":
        return recorded("sst2-standard-5x-refused-2cpu")
    if name == "no budget":
        report |= {"budget": None, "limit": None, "trials": [], "proofs": [], "command": ""}
        del report["scores"]["test"]
    elif name == "dropped":
        report["dropped"] = engine(report["pipeline"], "onnx", 0.8)
        report |= {"pipeline": "", "passes": [], "throughput_ratio": 1.0}
        report["speed"]["optimised"] = report["speed"]["dense"]
        report["layers"]["heads"] = report["layers"]["heads_dense"]
    elif name == "mux":
        report["mux"] = {
            "scores": [0.89, 0.9, 0.91],
            "mean": 0.9,
            "slots": [0.9, None],
            "depends_on_partners": 0.05,
        }
    elif name == "cascade":
        bars = [(i / 2, (i + 1) / 2, 90 - 10 * i, 9 - i) for i in range(9)]
        names = ("low", "high", "rows", "differ")
        stage = {"deferred": 0.2, "first": 0.85, "second": 0.9}
        report["cascade"] = {
            "second": "encoder{hidden=12 <b>}",
            "threshold": 0.8,
            "max_share": 0.25,
            "stages": {"certify": stage, "test": stage | {"deferred": 0.25}},
            "margins": [dict(zip(names, x, strict=True)) for x in bars],
        }
    elif name == "beside":
        report["beside"] = [
            engine("", "onnx{precision=int8 fusion=none}", 2.1),
            engine(report["pipeline"], "onnx{precision=fp32}", 3.5),
        ]
        report["target"] = "onnx{precision=int8 fusion=none}"
    elif name == "costs":
        report["costs"] = {
            "file": "costs<.json",
            "digest": "0" * 64,
            "date": "2026-11-27T20:00:00+00:00",
            "measured_on": {"cpu": "Some CPU", "gpu": "NVIDIA <L4>", "cpu_threads": "8"},
            "target": "tensorrt{flavor=rtx}",
            "engine": {"engine": "tensorrt-rtx"},
            "batch": 32,
            "length": 25,
            "error": 0.04,
            "dense_ms": 7.5,
            "chosen_ms": 2.5,
            "throughput_ratio": 3.0,
        }
    elif name == "predicted":
        for ratio, trial in enumerate(report["trials"], 2):
            trial["predicted_ratio"] = float(ratio)
    elif name == "failed":
        failed = {"pipeline": "pool-early", "score": None, "loss": None, "macs": None}
        report["trials"].append({**failed, "seconds": 1.0, "error": "out of reach"})
        report["trials"][0]["loss"] = 0.5  # far beyond the edge of the figure
    elif name == "tokens":
        labels = ["O", "B-<PER>"]
        kind = {"kind": "token-classification", "problem": "classification"}
        report["task"] = {**kind, "labels": labels}
        report["scores"]["test"]["interval_dense"] = [0.88, 0.91]
    elif name == "classes":
        labels = ["negative", "<positive>", "unseen"]
        report["task"] = {**TASK, "labels": labels}
        report["classes"] = {
            "certify": {"agreement": 0.95, "against": "labels", "classes": []}
        }
        report["classes"]["certify"]["classes"] = [
            one_class(label, rows, found)
            for label, rows, found in zip(
                labels, (428, 444, 0), ((390, 401), (393, 385), (0, 0)), strict=True
            )
        ]
        report["classes"]["test"] = {"agreement": 0.9, "against": "given model", "classes": []}
        report["warnings"] = ["the optimised model never answers '<positive>'"]
    else:
        assert name == "plain", name
    return report


KINDS = (
    "plain", "refused", "no budget", "dropped", "mux", "beside", "predicted", "failed",
    "tokens", "classes", "costs", "cascade",
)  # fmt: skip
