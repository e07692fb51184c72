"""Writes the golden files: `python -m tests.golden.record`, from the root of the repository.

With names of families it writes the entries of their models anew and keeps all others:
`python -m tests.golden.record roberta camembert`. With `run` it writes the report of the run.

The files were written by 0.1.0. Write them anew only for a difference that is meant, and say
in the commit which one it is and why.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prumux.optimizer.base import bfloat16
from tests.golden.cases import GOLDEN

from . import adapter, cases, models


def record(folder: Path = GOLDEN, threads: int = 1) -> None:
    """Compute everything and write it."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "machine.json", adapter.machine())
    record_models(folder, tuple(models.CONFIGS), threads)
    write(folder / "language.json", cases.of_language())
    (folder / "list-passes.txt").write_text(adapter.list_passes(), encoding="utf-8")
    record_run(folder)


def record_models(folder: Path, families: Collection[str], threads: int = 1) -> None:
    """Compute the models of some families; entries of others stay as they are."""
    torch.set_num_threads(threads)
    facts, logits = _stored(folder, "models.json"), _stored(folder, "logits.npz")
    for family, variant in cases.model_ids():
        if family in families:
            name = f"{family} {variant}"
            facts[name], found = cases.of_model(family, variant, threads)
            logits |= {f"{name} {k}": x for k, x in found.items()}
    write(folder / "models.json", facts)
    np.savez_compressed(folder / "logits.npz", **logits)
    made, logits = _stored(folder, "passes.json"), _stored(folder, "passes.npz")
    for i, case in enumerate(models.PASSES):
        if case[0] in families:
            made[" ".join(case)], found = cases.of_passes(*case)
            logits[f"{i}"] = found["torch"]  # in the order of `models.PASSES`
    write(folder / "passes.json", made)
    np.savez_compressed(folder / "passes.npz", **logits)


def record_run(folder: Path) -> None:
    """Compute the report of the run."""
    with tempfile.TemporaryDirectory() as out:
        write(folder / "report.json", cases.of_run(Path(out) / "out"))


def _stored(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.exists():
        return {}
    if path.suffix == ".json":
        return dict(json.loads(path.read_text(encoding="utf-8")))
    with np.load(path) as file:
        return dict(file)


def write(path: Path, facts: Mapping[str, Any]) -> None:
    """JSON with one entry a line, so that a difference shows which one it is."""
    lines = (f" {json.dumps(k)}: {json.dumps(x)}" for k, x in facts.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    bfloat16.fast_bf16 = lambda device: True  # type: ignore[assignment]  # as the tests do
    asked = set(sys.argv[1:])
    unknown = asked - {*models.CONFIGS, "run"}
    assert not unknown, f"no families: {unknown}"
    if asked - {"run"}:
        record_models(GOLDEN, asked)
    if "run" in asked:
        record_run(GOLDEN)
    if not asked:
        record()
