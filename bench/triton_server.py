"""Compare a Triton server with the bare engine: are its answers right, and how fast is it?

    make triton
    python bench/triton_server.py ARTIFACT --out bench/results/NAME.json

The server is from the wheel `nvidia-pytriton`. The engine behind the packer is ONNX Runtime in
Triton's Python backend. Rows are random token ids. Clients run on the same machine; each sends
its next request when the last request is answered.

1. `answers`: the server's engine records each run. Every answer must be the mean of the logits
   that the engine gave the same row (rows are unique). No group may have rows of two tenants.
2. `timings`: in every round the bare engine runs single rows and full batches of similar
   length, and the server runs with one client and with many clients. Servers of 1, 2 and 4
   packers with an engine that returns zeros show the limit of packers and clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.export.runtime.ort import OrtEngine
from prumux.export.triton.repository import MAX_BATCH, NAME, Serving, write_bundle
from prumux.export.triton.server import WHEEL, serving
from prumux.optimizer.base.environment import provenance
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.model.artifact import load_artifact
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import batch_rows, padded

RUNS = "runs.pickle"
FIRST_ID = 3
"""Smallest token id to use. Smaller ids are special tokens in most vocabularies."""
COUNTER_TOKENS = 4
"""Number of tokens that encode a row's number. They make each row unique."""
COMPARED_ROWS = 200
RECORDER = f"""\
import pickle
from pathlib import Path
from onnx_engine import TritonPythonModel as Engine

class TritonPythonModel(Engine):
    def initialize(self, args):
        super().initialize(args)
        self.file = open(Path(args["model_repository"]) / "{RUNS}", "ab")

    def _run(self, given):
        found = super()._run(given)
        for inputs, logits in zip(given, found):
            pickle.dump((inputs["input_ids"], inputs["attention_mask"], logits), self.file)
        self.file.flush()
        return found
"""
ZEROS = """\
import numpy as np
from onnx_engine import TritonPythonModel as Engine

class TritonPythonModel(Engine):
    def _run(self, given):
        labels = self.session.get_outputs()[0].shape[-1]
        return [np.zeros((len(x[self.names[0]]), labels), np.float32) for x in given]
"""
Row = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Load:
    """The requests of the clients."""

    clients: int
    tenants: int
    rows: int = 1
    """Number of rows of a request."""

    def tenant(self, number: int) -> str:
        """The tenant of a request; empty = no tenant."""
        return f"tenant {number % self.tenants}" if self.tenants else ""


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers that the clients got."""

    logits: dict[int, Floats] = field(default_factory=dict)
    """Logits by the number of the request."""
    errors: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)


def random_rows(model: Model, count: int, shortest: int, longest: int) -> list[Row]:
    """Make unique rows of random ids and lengths."""
    drawn = np.random.default_rng(0)
    base = model.encoder.vocab - FIRST_ID
    longest = min(longest, model.encoder.most_tokens)
    found = []
    for number in range(count):
        length = int(drawn.integers(max(shortest, COUNTER_TOKENS + 1), longest + 1))
        row = drawn.integers(FIRST_ID, model.encoder.vocab, length)
        row[-COUNTER_TOKENS:] = FIRST_ID + number // base ** np.arange(COUNTER_TOKENS) % base
        found.append(row)
    return found


def inputs_of(model: Model, rows: Sequence[Row]) -> dict[str, NDArray[np.int64]]:
    """Make the model's inputs, padded to the longest row."""
    longest = max(map(len, rows))
    found = {
        "input_ids": padded(rows, longest, model.encoder.pad_id),
        "attention_mask": padded([np.ones_like(x) for x in rows], longest, 0),
    }
    if model.encoder.token_types:
        found["token_type_ids"] = np.zeros_like(found["input_ids"])
    return found


def write_repository(
    model: Model, artifact: Path, folder: Path, packers: int, engine: str = ""
) -> Path:
    """Write a model repository. `engine` is the source of another `model.py` of the engine."""
    options = Serving(backend="python", packers=packers, threads=cpu_threads())
    write_bundle(model.encoder, model.task, artifact / "model.onnx", folder, options)
    if engine:
        place = folder / f"{NAME}_engine" / "1"
        (place / "model.py").rename(place / "onnx_engine.py")
        (place / "model.py").write_text(engine, encoding="utf-8")
    return folder


def ask(url: str, model: Model, rows: Sequence[Row], load: Load) -> Answers:
    """Send all rows over gRPC, from many clients at once."""
    return asyncio.run(_ask(url, model, rows, load))


async def _ask(url: str, model: Model, rows: Sequence[Row], load: Load) -> Answers:
    import tritonclient.grpc.aio as triton

    numbers = iter(range(len(rows) // load.rows))
    answers = Answers()

    async def client(server: Any) -> None:
        for number in numbers:
            part = rows[number * load.rows : (number + 1) * load.rows]
            inputs = []
            for name, values in inputs_of(model, part).items():
                inputs.append(triton.InferInput(name, list(values.shape), "INT64"))
                inputs[-1].set_data_from_numpy(values)
            if load.tenants:
                owners = np.array([[load.tenant(number)]] * len(part), dtype=object)
                inputs.append(triton.InferInput("tenant", list(owners.shape), "BYTES"))
                inputs[-1].set_data_from_numpy(owners)
            start = time.perf_counter()
            try:
                answer = await server.infer(NAME, inputs)
            except Exception as error:
                answers.errors.append(str(error))
                continue
            answers.latencies_ms.append(1000 * (time.perf_counter() - start))
            answers.logits[number] = answer.as_numpy("logits")

    async with triton.InferenceServerClient(url) as server:
        await asyncio.gather(*(client(server) for _ in range(load.clients)))
    return answers


def check_answers(
    model: Model, rows: Sequence[Row], load: Load, answers: Answers, runs: Path
) -> dict[str, Any]:
    """Compare every answer with the engine's logits for the same row.

    The result counts lost requests, rows whose answer differs from the engine's logits
    (crossed), and groups with rows of two tenants (shared).
    """
    n = model.encoder.slots
    owner = {x.tobytes(): load.tenant(i // load.rows) for i, x in enumerate(rows)}
    given: dict[bytes, list[Floats]] = {}
    shared, sizes = 0, []
    for ids, mask, logits in recorded(runs):
        keys = [row[real == 1].tobytes() for row, real in zip(ids, mask, strict=True)]
        if not set(keys) <= set(owner):
            continue  # the warm-up
        sizes.append(len(keys))
        groups = [{owner[x] for x in keys[i : i + n]} for i in range(0, len(keys), n)]
        shared += sum(len(x) > 1 for x in groups)
        for key, each in zip(keys, logits, strict=True):
            given.setdefault(key, []).append(each)
    crossed = 0
    for number, logits in answers.logits.items():
        for i, found in enumerate(logits):
            places = given.get(rows[number * load.rows + i].tobytes(), [])
            expected = places[0] if len(places) == 1 else _mean(places)
            crossed += not np.array_equal(found, expected)
    asked = len(rows) // load.rows
    return {
        "requests": asked,
        "lost": asked - len(answers.logits),
        "crossed": crossed,
        "shared": shared,
        "first_error": next(iter(answers.errors), ""),
        "engine_runs": len(sizes),
        "rows_a_run": statistics.mean(sizes) if sizes else 0.0,
    }


def _mean(places: Sequence[Floats]) -> Floats:
    """The mean logits of a row that filled several slots, computed as in the packer."""
    if not places:
        return np.zeros(0, np.float32)
    mean: NDArray[np.float64] = np.mean(places, axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def recorded(runs: Path) -> Iterator[tuple[Row, Row, Floats]]:
    """Read ids, mask and logits of each run of the engine."""
    with runs.open("rb") as file:
        while file.peek(1):
            yield pickle.load(file)


def difference(
    model: Model, engine: OrtEngine, rows: Sequence[Row], answers: Answers
) -> float:
    """Largest difference of a logit from the bare engine, which runs each row alone."""
    some = [i for i in sorted(answers.logits) if i < COMPARED_ROWS]
    each = (engine.run(inputs_of(model, [rows[i]])) - answers.logits[i][:1] for i in some)
    return max((float(np.abs(x).max()) for x in each), default=0.0)


def check(
    model: Model, artifact: Path, rows: Sequence[Row], load: Load, wheel: Path
) -> dict[str, Any]:
    """Part 1: check all answers of a server."""
    with tempfile.TemporaryDirectory() as folder:
        repository = write_repository(model, artifact, Path(folder) / "r", 2, RECORDER)
        with serving(repository, wheel=wheel) as server:
            answers = ask(server.grpc, model, rows, load)
        # The recorder writes to the folder of the engine's model.
        runs = repository / f"{NAME}_engine" / RUNS
        found = check_answers(model, rows, load, answers, runs)
    engine = OrtEngine(artifact / "model.onnx", cpu_threads())
    return {**found, "difference_alone": difference(model, engine, rows, answers)}


@dataclass(frozen=True, eq=False)
class Case:
    """A way to run all rows, to be timed."""

    name: str
    run: Callable[[], list[float]]
    """Runs all rows; returns the milliseconds of each request."""
    rows: int


def bare_cases(model: Model, engine: OrtEngine, rows: Sequence[Row]) -> list[Case]:
    """Cases of the engine without a server."""
    size = batch_rows(MAX_BATCH, model.encoder.slots)
    ordered = sorted(rows, key=len)
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    alone = [[x] for x in rows]

    def run(parts: list[list[Row]]) -> list[float]:
        found = []
        for part in parts:
            inputs = inputs_of(model, part)
            start = time.perf_counter()
            engine.run(inputs)
            found.append(1000 * (time.perf_counter() - start))
        return found

    return [
        Case("engine, one row", lambda: run(alone), len(rows)),
        Case(f"engine, batches of {size}", lambda: run(batches), len(rows)),
    ]


def time_all(
    model: Model, artifact: Path, rows: Sequence[Row], load: Load, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Part 2: start all servers, and send rows to one server at a time."""
    cases = bare_cases(model, OrtEngine(artifact / "model.onnx", cpu_threads()), rows)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def add(name: str, packers: int, engine: str, loads: Sequence[Load]) -> None:
            repository = write_repository(model, artifact, root / name, packers, engine)
            url = stack.enter_context(serving(repository, wheel=given.wheel)).grpc
            for each in loads:

                def run(each: Load = each) -> list[float]:
                    answers = ask(url, model, rows, each)
                    if answers.errors:
                        raise SystemExit(f"{name}: {answers.errors[0]}")
                    return answers.latencies_ms

                count = len(rows) // each.rows * each.rows
                asked = f"{name}, {each.clients} clients, {each.rows} rows each"
                cases.append(Case(asked, run, count))

        loads = [Load(load.clients, load.tenants, x) for x in given.rows]
        add("server", 2, "", [Load(1, load.tenants), *loads])
        for packers in given.packers:
            add(f"no engine, {packers} packers", packers, ZEROS, loads[-1:])
        return interleaved(cases, given.rounds)


def interleaved(cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    """Time cases in turn; return rows per second by round, and latencies over all rounds."""
    speeds: list[list[float]] = [[] for _ in cases]
    latencies: list[list[float]] = [[] for _ in cases]
    for number in range(rounds + 1):  # the first round is a warm-up
        order = list(enumerate(cases))
        for i, case in order if number % 2 else reversed(order):
            start = time.perf_counter()
            found = case.run()
            seconds = time.perf_counter() - start
            if number:
                speeds[i].append(case.rows / seconds)
                latencies[i] += found
    return [
        {
            "name": case.name,
            "rows_per_second": speed,
            "share_of_batches": statistics.median(
                x / full for x, full in zip(speed, speeds[1], strict=True)
            ),
            "latency_ms_p50": float(np.percentile(ms, 50)),
            "latency_ms_p99": float(np.percentile(ms, 99)),
        }
        for case, speed, ms in zip(cases, speeds, latencies, strict=True)
    ]


def table(found: dict[str, Any]) -> str:
    """Format the figures as text."""
    answers = found["answers"]
    lines = [
        f"{answers['requests']} requests: {answers['lost']} lost, {answers['crossed']} rows "
        f"crossed, {answers['shared']} groups of two tenants; "
        f"{answers['rows_a_run']:.1f} rows a run of the engine",
        f"{'':44}{'rows/s':>10}{'of batches':>12}{'p50 ms':>10}{'p99 ms':>10}",
    ]
    for x in found["timings"]:
        lines.append(
            f"{x['name']:44}{statistics.median(x['rows_per_second']):10.0f}"
            f"{x['share_of_batches']:12.0%}"
            f"{x['latency_ms_p50']:10.2f}{x['latency_ms_p99']:10.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Check the answers, time the cases, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path, help="a result of --target onnx")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, default=WHEEL, help="folder of the server")
    parser.add_argument("--requests", type=int, default=100_000, help="of part 1")
    parser.add_argument("--round-rows", type=int, default=2_000, help="rows a round of part 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tenants", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="of a request")
    parser.add_argument("--packers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--lengths", type=int, nargs=2, default=[6, 48], help="in tokens")
    given = parser.parse_args()
    sys.path.append(str(given.wheel))  # this folder contains grpcio
    model = load_artifact(given.artifact)
    if not model.encoder.pooled:
        parser.error("the artifact must answer once a row, not once a token")
    rows = random_rows(model, given.requests, *given.lengths)
    load = Load(given.clients, given.tenants)
    found = {
        **provenance(),
        "artifact": {"name": given.artifact.name, "slots": model.encoder.slots},
        "arguments": {k: v for k, v in vars(given).items() if not isinstance(v, Path)},
        "answers": check(model, given.artifact, rows, load, given.wheel),
    }
    found["timings"] = time_all(model, given.artifact, rows[: given.round_rows], load, given)
    given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(table(found) + "\n")


if __name__ == "__main__":
    main()
