"""What is recorded of a model, of passes, of the language and of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import adapter, canonical, models, texts

GOLDEN = Path(__file__).parent
GIVEN = GOLDEN.parent / "data" / "0.1.0" / "given"
"""A tiny model with its data, written once by 0.1.0."""
Facts = dict[str, Any]
Logits = dict[str, NDArray[np.float32]]
COUNTED_LENGTH = 40
"""Tokens a row for which multiply-adds are counted."""
ATTACHED = (
    *("facts", "versions", "device", "date", "seconds", "command", "source", "files"),
    *("throughput_ratio", "speed", "file_bytes", "beside", "dropped"),
)
"""Of a report: times, versions, digests, devices."""
ADDED = ("triton", "tensorrt", "certified_answers")
"""Files of a result that 0.1.0 did not write, or wrote otherwise."""


def model_ids() -> list[tuple[str, str]]:
    """Every family with every variant."""
    return [(family, variant) for family in models.CONFIGS for variant in models.VARIANTS]


def chosen(whole: bool) -> list[tuple[str, str]]:
    """All models, or two variants a family: each variant once at least, each family twice."""
    ids = model_ids()
    if whole:
        return ids
    count = len(models.VARIANTS)
    picked = {(i, (2 * i + k) % count) for i in range(len(models.CONFIGS)) for k in (0, 1)}
    return [x for at, x in enumerate(ids) if divmod(at, count) in picked]


def of_model(family: str, variant: str, threads: int = 1) -> tuple[Facts, Logits]:
    """Weights, costs and graphs of a model, and its logits in torch and every precision."""
    model, given = models.made(family, variant), models.rows(family)
    facts: Facts = {**_facts(model), "graphs": {}}
    logits: Logits = {"torch": models.counted(adapter.torch_logits(model, given), given)}
    for precision in adapter.PRECISIONS:
        proto = adapter.graph(model, precision)
        facts["graphs"][precision] = canonical.facts(proto)
        found = adapter.onnx_logits(proto, given, threads)
        logits[precision] = models.counted(found, given)
    return facts, logits


def of_passes(family: str, task: str, text: str) -> tuple[Facts, Logits]:
    """Sizes and logits of what a pipeline makes of a dense model."""
    given = models.rows(family)
    model = adapter.passed(models.dense(family, task), text, given)
    logits = {"torch": models.counted(adapter.torch_logits(model, given), given)}
    return {"sizes": adapter.sizes(model), "cost": adapter.cost(model, COUNTED_LENGTH)}, logits


def _facts(model: adapter.Compiled) -> Facts:
    weights = adapter.weights(model)
    expected = adapter.shapes(model)
    assert {k: x.shape for k, x in weights.items()} == expected
    return {
        "sizes": adapter.sizes(model),
        "cost": adapter.cost(model, COUNTED_LENGTH),
        "weights": {
            k: [list(expected[k]), round(canonical.checksum(x), 9)] for k, x in weights.items()
        },
    }


def of_language() -> Facts:
    """Every text, parsed and printed, or its error."""
    return {
        "pipelines": {x: adapter.parsed(x) for x in texts.PIPELINES},
        "spaces": {x: adapter.space(x) for x in texts.SPACES},
        "targets": {x: adapter.target(x) for x in texts.TARGETS},
    }


def of_run(out: Path) -> Facts:
    """The report of a tiny run at quick effort, without what no two runs share."""
    report = adapter.optimize(
        GIVEN / "model",
        out,
        data=str(GIVEN / "data"),
        budget="24%",
        effort="quick",
        target="onnx{precision=fp32 fusion=none}",
    )
    kept: Facts = {k: x for k, x in report.items() if k not in ATTACHED}
    kept["files"] = [x for x in report["files"] if not x.startswith(ADDED)]
    kept["source"] = {k: x for k, x in report["source"].items() if k != "digest"}
    kept["data"] = {"roles": report["data"]["roles"]}
    kept["serving"] = _without(report["serving"], "threads")
    kept["engine"] = _without(report["engine"], "threads", "version")
    kept["passes"] = [_without(x, "seconds") for x in report["passes"]]
    kept["trials"] = [_without(x, "seconds", "predicted_ratio") for x in report["trials"]]
    for export in report["export"].values():
        export.pop("parity")
    return kept


def _without(given: Mapping[str, Any], *names: str) -> Facts:
    return {k: x for k, x in given.items() if k not in names}
