"""Writes the golden files: `python -m tests.golden.record`, from the root of the repository.

They were written by 0.1.0. Write them anew only for a difference that is meant, and say in the
commit which one it is and why.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden.cases import GOLDEN

from . import adapter, cases, models


def record(folder: Path = GOLDEN, threads: int = 1) -> None:
    """Compute everything and write it."""
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "machine.json", adapter.machine())
    facts: dict[str, Any] = {}
    logits: dict[str, Any] = {}
    for family, variant in cases.model_ids():
        facts[f"{family} {variant}"], found = cases.of_model(family, variant, threads)
        logits |= {f"{family} {variant} {k}": x for k, x in found.items()}
    write(folder / "models.json", facts)
    np.savez_compressed(folder / "logits.npz", **logits)
    made: dict[str, Any] = {}
    logits = {}
    for case in models.PASSES:
        made[" ".join(case)], found = cases.of_passes(*case)
        logits[f"{len(logits)}"] = found["torch"]  # in the order of `models.PASSES`
    write(folder / "passes.json", made)
    np.savez_compressed(folder / "passes.npz", **logits)
    write(folder / "language.json", cases.of_language())
    (folder / "list-passes.txt").write_text(adapter.list_passes(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as out:
        write(folder / "report.json", cases.of_run(Path(out) / "out"))


def write(path: Path, facts: Mapping[str, Any]) -> None:
    """JSON with one entry a line, so that a difference shows which one it is."""
    lines = (f" {json.dumps(k)}: {json.dumps(x)}" for k, x in facts.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    record()
