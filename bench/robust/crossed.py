"""Send many rows from many threads to mixed models: does each caller get its own answers?

A mixed model answers the rows of a group together. So an answer cannot be compared with the
answer to the row alone. Instead, a witness wraps the engine and records the engine's answer to
each row. The witness recognises rows by their tokens, which are unique. The caller must get
exactly the recorded answer, or the mean of the recorded answers if the row filled several
places of a group. Some runs are compared with the torch module, to check that the engine
itself does not exchange the answers of a group.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prumux.export.graph import graph_file
from prumux.export.graph.graph import build
from prumux.export.onnx import Onnx
from prumux.export.runtime.grouping import BatchingRunner, DirectRunner
from prumux.export.runtime.predictor import Predictor, load
from prumux.export.triton.repository import Serving, write_bundle
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.module import run as run_torch
from prumux.optimizer.pipeline.target import Engine
from tests.helpers.factory import make_context, multiplexed, random_model, tiny_tokenizer
from tests.helpers.tritonserver import Batcher, Server, request

from .steps import stored

THREADS, SLOTS, BATCH = 64, 3, 48
TENANTS = "xyz"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROUNDING = 1e-5
"""Largest allowed difference of an answer from the recorded one: means may be summed in
another order."""
TORCH = 1e-4
"""Largest allowed difference of the engine from the torch module."""
SAMPLE_EVERY = 500
"""Of so many runs, one is compared with the torch module."""

Inputs = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]
Ask = Callable[[Sequence[int]], Floats]
"""A function that takes numbers of rows and returns their logits. Many threads call it."""


@dataclass(eq=False)
class Witness:
    """An engine that records the answer to each row, and counts groups of two tenants."""

    engine: Callable[[Inputs], Floats]
    reference: Callable[[Inputs], Floats] | None = None
    notes: dict[bytes, list[Floats]] = field(default_factory=dict)
    runs: int = 0
    mixed_tenants: int = 0
    """Number of groups with rows of two tenants."""
    alike: int = 0
    """Number of groups with two answers that are too similar to detect an exchange."""
    groups: int = 0
    torch_difference: float = 0.0
    _lock: Any = field(default_factory=threading.Lock)

    def run(self, inputs: Inputs) -> Floats:
        """Run the engine, and record its answers."""
        found = self.engine(inputs)
        keys = row_keys(inputs)
        owners = np.asarray(inputs["input_ids"])[:, 1].reshape(-1, SLOTS)
        mixed = int((owners != owners[:, :1]).any(1).sum())
        alike = _alike(keys, found)
        with self._lock:
            self.runs += 1
            self.groups += len(owners)
            self.mixed_tenants += mixed
            self.alike += alike
            for key, row in zip(keys, found, strict=True):
                self.notes.setdefault(key, []).append(row)
            sampled = self.reference is not None and self.runs % SAMPLE_EVERY == 1
        if sampled and self.reference is not None:
            off = float(np.abs(self.reference(inputs) - found).max())
            self.torch_difference = max(self.torch_difference, off)
        return found

    def describe(self) -> Mapping[str, str]:
        """See `Engine.describe`."""
        return {"engine": "witness"}

    def take(self, key: bytes) -> Floats | None:
        """Return and forget the recorded answer to a row; None = the row did not run."""
        with self._lock:
            rows = self.notes.pop(key, None)
        return None if rows is None else np.mean(rows, axis=0)


def row_keys(inputs: Inputs) -> list[bytes]:
    """The real tokens of each row, as bytes."""
    ids, mask = np.asarray(inputs["input_ids"]), np.asarray(inputs["attention_mask"]) != 0
    return [row[real].tobytes() for row, real in zip(ids, mask, strict=True)]


def _alike(keys: Sequence[bytes], found: Floats) -> int:
    """Count groups in which two different rows have answers within ten times the tolerance."""
    rows = found.reshape(-1, SLOTS, found.shape[1])
    near = np.zeros(len(rows), bool)
    for i in range(SLOTS):
        for j in range(i):
            other = np.array([keys[g + i] != keys[g + j] for g in range(0, len(keys), SLOTS)])
            close = np.abs(rows[:, i] - rows[:, j]).max(1) < 10 * ROUNDING
            near |= other & close
    return int(near.sum())


def text(number: int) -> str:
    """The unique text of a row: its tenant's letter, then its number in letters."""
    letters, left = [], number
    for _ in range(5):
        letters.append(LETTERS[left % 26])
        left //= 26
    more = ["good"] * (number % 7)
    return " ".join([TENANTS[number % 3], *letters, *more])


def calls(rows: int) -> list[range]:
    """The rows of each call: 1 to 40 rows."""
    found, at = [], 0
    while at < rows:
        size = 1 + (at * 2654435761 >> 7) % 40
        found.append(range(at, min(at + size, rows)))
        at += size
    return found


def lane(
    name: str, ask: Ask, witness: Witness, rows: int, seen: Callable[[int], bytes]
) -> dict[str, Any]:
    """Send all rows from 64 threads, and compare every answer.

    Args:
        name: name of the lane in the table.
        ask: answers rows.
        witness: the engine that answers.
        rows: number of rows.
        seen: returns the tokens of a row as the witness sees them.
    """
    started = time.monotonic()

    def one(call: Sequence[int]) -> tuple[int, int, float]:
        """Count wrong and lost answers; also return the largest difference from the record."""
        found = ask(call)
        crossed, lost, largest = 0, abs(len(found) - len(call)), 0.0
        for number, row in zip(call, found, strict=False):
            own = witness.take(seen(number))
            if own is None:
                lost += 1
                continue
            off = float(np.abs(own - row).max())
            crossed += off > ROUNDING
            largest = max(largest, off)
        return crossed, lost, largest

    asked = calls(rows)
    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(one, asked))
    return {
        "lane": name,
        "rows": rows,
        "calls": len(asked),
        "threads": THREADS,
        "tenants": len(TENANTS),
        "rows_in_a_pass": SLOTS,
        "runs": witness.runs,
        "crossed": sum(x for x, _, _ in results),
        "not_answered": sum(x for _, x, _ in results),
        "groups": witness.groups,
        "groups_of_two_tenants": witness.mixed_tenants,
        "groups_too_alike_to_tell": witness.alike,
        "largest_difference": max(x for _, _, x in results),
        "largest_difference_from_torch": witness.torch_difference,
        "seconds": round(time.monotonic() - started, 1),
    }


def mixed_model() -> Model:
    """A small model with random weights that mixes three rows into one."""
    model = random_model(heads=(4, 4), hidden=16, labels=3)
    return replace(multiplexed(model, n=SLOTS, at=1), tokenizer=tiny_tokenizer())


def _witness(model: Model, engine: Callable[[Inputs], Floats]) -> Witness:
    module = EncoderModule(model).eval()
    return Witness(engine, lambda inputs: run_torch(module, dict(inputs)))


def predictor_lane(folder: Path, rows: int, wait_ms: float | None) -> dict[str, Any]:
    """Send rows through `prumux.load(...)`, with or without joining concurrent calls."""
    model = mixed_model()
    if not (folder / "model.onnx").exists():
        save_artifact(model, folder)
        Onnx(fusion="none").emit(model, make_context(model), folder)
    given = load(folder, threads=1)
    witness = _witness(model, given.engine.run)
    engine: Engine = witness
    runner = (
        DirectRunner(engine, SLOTS)
        if wait_ms is None
        else BatchingRunner(engine, SLOTS, wait_ms)
    )
    predictor: Predictor = replace(given, runner=runner, reload=None)

    def ask(call: Sequence[int]) -> Floats:
        owners = [TENANTS[i % 3] for i in call]
        found = predictor.predict_logits([text(i) for i in call], BATCH, isolate=owners)
        return np.asarray(found)

    name = "prumux.load" if wait_ms is None else f"prumux.load(max_wait_ms={wait_ms:g})"
    result = lane(name, ask, witness, rows, _tokens(model))
    predictor.close()
    return result


def _tokens(model: Model) -> Callable[[int], bytes]:
    """Return a function from a row's number to its token ids as bytes: one id per word."""
    assert model.tokenizer is not None
    ids = {x: int(i) for x, i in model.tokenizer.get_vocab().items()}

    def seen(number: int) -> bytes:
        words = ["[CLS]", *text(number).split(), "[SEP]"]
        return np.array([ids[x] for x in words], np.int64).tobytes()

    return seen


@dataclass
class WitnessedServer(Server):
    """The stand-in server, with a witness around its engine."""

    witness: Witness | None = None

    def run(self, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """See `Server.run`. Inputs are not kept."""
        self.runs.clear()
        assert self.witness is not None
        return self.witness.run(inputs)


def packer_lane(folder: Path, rows: int) -> dict[str, Any]:
    """Send rows through the packer of the Triton bundle, with a stand-in for the batcher."""
    model = mixed_model()
    if not (folder / "triton").exists():
        folder.mkdir(parents=True, exist_ok=True)
        graph_file.save(build(model), folder)
        serving = Serving(max_batch=BATCH, length=16)
        write_bundle(
            model.encoder, model.task, folder / "model.onnx", folder / "triton", serving
        )
    server = WitnessedServer(folder / "triton")
    server.witness = witness = _witness(model, lambda x: Server.run(server, dict(x)))
    seen = _tokens(model)
    with pytest.MonkeyPatch.context() as patch:
        packer = server.load(patch)
        with Batcher(packer, most=BATCH) as batcher:

            def ask(call: Sequence[int]) -> Floats:
                ids = [np.frombuffer(seen(i), np.int64).tolist() for i in call]
                tenants = [TENANTS[i % 3] for i in call]
                batcher.batches.clear()
                return np.asarray(batcher.infer(request(ids, tenants)).logits)

            return lane("Triton packer", ask, witness, rows, seen)


def run(folder: Path, rows: int) -> list[dict[str, Any]]:
    """Run all lanes. Each finished lane is stored."""
    lanes: dict[str, Callable[[], dict[str, Any]]] = {
        "waiting": lambda: predictor_lane(folder / "artifact", rows, 2.0),
        "direct": lambda: predictor_lane(folder / "artifact", rows, None),
        "packer": lambda: packer_lane(folder / "bundle", rows),
    }
    return [stored(folder / f"{name}-{rows}.json", make) for name, make in lanes.items()]


def lines(lanes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format the lanes as a table."""
    made = [f"{'way':30}{'rows':>10}{'runs':>9}{'crossed':>9}{'lost':>6}{'two tenants':>13}"]
    for x in lanes:
        made.append(
            f"{x['lane']:30}{x['rows']:10}{x['runs']:9}{x['crossed']:9}{x['not_answered']:6}"
            f"{x['groups_of_two_tenants']:13}"
        )
    return made
