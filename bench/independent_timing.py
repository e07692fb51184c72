"""Does plain ONNX Runtime measure the same throughput ratio as `prumux-bench`?

    python bench/independent_timing.py RESULT... --lengths 32 128 --out bench/results/NAME.json

RESULT are result folders of `prumux-opt`, all of the same given model. The command in their
report.json has the given model's path. `--dense MODEL` replaces this path by another path, to
a Hugging Face folder or an fp32 `.onnx` file.

For each length, `prumux-bench --target onnx` compares the given model with the results, and
keeps the given model's exported graphs. Then this script, which imports nothing of prumux,
opens these graphs and the results' graphs in plain ONNX Runtime. The script also opens the
plain graph after ONNX Runtime's own transformer optimiser, and times every graph at every
batch size. Then the fastest graph and batch size of the given model, and the fastest batch
size of each result, run in turn. Rows are random and without padding.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

BATCHES = (8, 16, 32, 64)
PROBES, ROUNDS = 3, 9
PROBE_MS, ROUND_MS = 100.0, 300.0
"""Time for which a session repeats its run in a round."""
REST_S = 0.05
"""Pause before each measurement, in which the threads of the previous session fall asleep."""
MOST_IDS = 1000
"""Random token ids are from v/2 up to v, where v is this number, or the size of a smaller
vocabulary."""
SLOTS = "prumux.slots"


@dataclass(eq=False)
class Session:
    """A graph in plain ONNX Runtime at one batch size."""

    graph: str
    session: Any
    batch: int
    feed: dict[str, Any]
    times_ms: list[float] = field(default_factory=list)
    """Mean milliseconds of a run, one number for each round."""

    def time(self, least_ms: float) -> None:
        """Run for about `least_ms`, and store the mean time of a run."""
        once = self._seconds(1)
        repeats = max(1, round(least_ms / 1000 / once))
        self.times_ms.append(1000 * self._seconds(repeats) / repeats)

    def _seconds(self, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            self.session.run(None, self.feed)
        return time.perf_counter() - start

    @property
    def best_row_ms(self) -> float:
        """Milliseconds per row in the best round."""
        return min(self.times_ms) / self.batch


@dataclass(frozen=True)
class IndependentTiming:
    """A result against the given model, timed by plain ONNX Runtime and by `prumux-bench`."""

    result: str
    length: int
    dense_graph: str
    dense_batch: int
    dense_rows_per_second: float
    result_batch: int
    result_rows_per_second: float
    throughput_ratio: float
    """The given model's time divided by the result's time: the median over rounds."""
    throughput_ratio_low: float
    throughput_ratio_high: float
    bench_ratio: float
    bench_ratio_low: float
    bench_ratio_high: float
    bench_dense_graph: str
    bench_dense_batch: int
    bench_result_batch: int

    @property
    def off(self) -> float:
        """Relative difference of `prumux-bench`'s ratio from the independent ratio."""
        return self.bench_ratio / self.throughput_ratio - 1


def opened(graph: str, file: Path | bytes, threads: int) -> Any:
    """Open an `InferenceSession` with all of ONNX Runtime's optimisations."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    source = file if isinstance(file, bytes) else str(file)
    try:
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise SystemExit(f"{graph} cannot be opened: {str(error)[:200]}") from error


def sessions(graph: str, session: Any, length: int, options: Any) -> list[Session]:
    """Sessions of a graph at every batch size. A multiplexed graph gets whole groups."""
    slots = int(session.get_modelmeta().custom_metadata_map.get(SLOTS, "1"))
    sizes = sorted({max(1, x // slots) * slots for x in options.batches})
    feeds = [feed_of(session, n, length, options.vocab) for n in sizes]
    return [Session(graph, session, n, x) for n, x in zip(sizes, feeds, strict=True)]


def feed_of(session: Any, batch: int, length: int, vocab: int) -> dict[str, Any]:
    """Random rows without padding, int64 [batch, length] by input name."""
    ids = np.random.default_rng(1).integers(vocab // 2, vocab, (batch, length))
    every = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    return {x.name: every[x.name] for x in session.get_inputs()}


def in_turn(some: Sequence[Session], rounds: int, least_ms: float) -> None:
    """Time sessions in turn. Every second round runs in reverse order."""
    for number in range(rounds):
        for x in some if number % 2 == 0 else reversed(some):
            time.sleep(REST_S)
            x.time(least_ms)


def fastest(some: Sequence[Session], probes: int, probe_ms: float) -> Session:
    """Find the fastest graph and batch size per row by short runs; then clear their times."""
    in_turn(some, probes, probe_ms)
    best = min(some, key=lambda x: x.best_row_ms)
    for x in some:
        print(  # noqa: T201 - progress of a script
            f"  {x.graph} batch {x.batch}: {1000 / x.best_row_ms:.0f} rows/s", file=sys.stderr
        )
        x.times_ms.clear()
    return best


def optimised_by_onnxruntime(graph: Path) -> bytes | None:
    """Apply ONNX Runtime's own transformer optimiser to a graph; None if it fails."""
    import onnx
    from onnxruntime.transformers.fusion_options import AttentionMaskFormat, FusionOptions
    from onnxruntime.transformers.optimizer import optimize_by_fusion

    options = FusionOptions("bert")
    options.attention_mask_format = AttentionMaskFormat.AttentionMask
    logging.disable(logging.CRITICAL)
    try:
        fused = optimize_by_fusion(onnx.load(graph), "bert", 0, 0, options).model
    except Exception as error:  # the tool raises anything
        print(f"  the optimiser fails: {error!r:.200}", file=sys.stderr)  # noqa: T201
        return None
    finally:
        logging.disable(logging.NOTSET)
    found: bytes = fused.SerializeToString()
    return found


def dense_graphs(kept: Path, dense: Path) -> dict[str, Path]:
    """The graphs that `prumux-bench` kept; else the graph that the user gave."""
    found = {x.parent.name: x for x in sorted(kept.rglob("*.onnx"))}
    return found or {"given": dense}


def bench(dense: Path, results: Sequence[Path], length: int, options: Any) -> dict[str, Any]:
    """Run `prumux-bench` and return its report. Its graphs stay in `options.kept`."""
    command = ["-m", "prumux.export.benchmark.cli", str(dense), *map(str, results)]
    command += ["--length", str(length), "--threads", str(options.threads), "--json"]
    command += ["--rounds", str(options.rounds), "--device", "cpu"]
    if dense.suffix != ".onnx":
        command += ["--target", "onnx{precision=fp32}", "--keep-graphs", str(options.kept)]
    done = subprocess.run(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compared(
    dense: Path, results: Sequence[Path], length: int, options: Any
) -> tuple[list[IndependentTiming], dict[str, Any]]:
    """Time one length by `prumux-bench` and by plain ONNX Runtime."""
    report = bench(dense, results, length, options)
    graphs: dict[str, Path | bytes] = {**dense_graphs(options.kept, dense)}
    plain = graphs.get("plain", graphs.get("given"))
    if isinstance(plain, Path):
        fused = optimised_by_onnxruntime(plain)
        graphs |= {} if fused is None else {"optimised by onnxruntime.transformers": fused}
    open_dense = [
        x
        for name, file in graphs.items()
        for x in sessions(name, opened(name, file, options.threads), length, options)
    ]
    chosen = [fastest(open_dense, options.probes, options.probe_ms)]
    for result in results:
        session = opened(str(result), result / "model.onnx", options.threads)
        some = sessions(result.name, session, length, options)
        chosen.append(fastest(some, options.probes, options.probe_ms))
    in_turn(chosen, options.rounds, options.round_ms)
    pairs = zip(results, chosen[1:], report["best"][1:], strict=True)
    timings = [
        timing(result, length, (chosen[0], x), (report["best"][0], y))
        for result, x, y in pairs
    ]
    return timings, report


def timing(
    result: Path,
    length: int,
    both: tuple[Session, Session],
    by_bench: tuple[dict[str, Any], dict[str, Any]],
) -> IndependentTiming:
    """The figures of one result. In each pair, the given model comes first."""
    dense, other = both
    ratios = [
        (a / dense.batch) / (b / other.batch)
        for a, b in zip(dense.times_ms, other.times_ms, strict=True)
    ]
    return IndependentTiming(
        result=str(result),
        length=length,
        dense_graph=dense.graph,
        dense_batch=dense.batch,
        dense_rows_per_second=1000 * dense.batch / statistics.median(dense.times_ms),
        result_batch=other.batch,
        result_rows_per_second=1000 * other.batch / statistics.median(other.times_ms),
        throughput_ratio=statistics.median(ratios),
        throughput_ratio_low=min(ratios),
        throughput_ratio_high=max(ratios),
        bench_ratio=by_bench[1]["throughput_ratio"],
        bench_ratio_low=by_bench[1]["throughput_ratio_low"],
        bench_ratio_high=by_bench[1]["throughput_ratio_high"],
        bench_dense_graph=by_bench[0]["graph"],
        bench_dense_batch=by_bench[0]["batch"],
        bench_result_batch=by_bench[1]["batch"],
    )


def given_model(results: Sequence[Path]) -> Path:
    """Read the given model from the command in each report. It must be the same for all."""
    found = set()
    for x in results:
        report = json.loads((x / "report.json").read_text(encoding="utf-8"))
        found.add(next(y for y in shlex.split(report["command"])[1:] if not y.startswith("-")))
    one = Path(found.pop())
    if found or not one.exists():
        raise SystemExit("name the given model of these results: --dense MODEL")
    return one


def text_of(found: dict[str, Any], folders: Sequence[Path]) -> str:
    """Write the figures as JSON, with names in place of absolute paths."""
    text = json.dumps(found, indent=2) + "\n"
    for x in (x for x in folders if x.is_absolute()):
        text = text.replace(str(x), x.name)
    return text


def line(x: IndependentTiming) -> str:
    """Format a row of the table."""
    low, high = x.throughput_ratio_low, x.throughput_ratio_high
    here = f"{x.throughput_ratio:.2f} [{low:.2f}, {high:.2f}]"
    there = f"{x.bench_ratio:.2f} [{x.bench_ratio_low:.2f}, {x.bench_ratio_high:.2f}]"
    return (
        f"{Path(x.result).name} length {x.length}: {here} at {x.dense_graph} {x.dense_batch}/"
        f"{x.result_batch}; prumux-bench {there} at {x.bench_dense_graph or 'given'} "
        f"{x.bench_dense_batch}/{x.bench_result_batch}; {100 * x.off:+.1f} %"
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="RESULT")
    add("--dense", type=Path, metavar="MODEL", help="the given model")
    add("--lengths", type=int, nargs="+", default=[32, 128], help="tokens of every row")
    add("--batches", type=int, nargs="+", default=BATCHES)
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=ROUNDS, help="of both timings")
    add("--out", type=Path, required=True, help="written after every length")
    add("--quick", action="store_true", help="few short rounds, to try the script")
    options = parser.parse_args(arguments)
    options.probes = 1 if options.quick else PROBES
    options.probe_ms, options.round_ms = (1, 1) if options.quick else (PROBE_MS, ROUND_MS)
    options.rounds = 2 if options.quick else options.rounds
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all lengths, print a table and write the figures."""
    options = _options(arguments)
    dense = options.dense or given_model(options.results)
    configs = [json.loads((x / "config.json").read_text("utf-8")) for x in options.results]
    options.vocab = min(MOST_IDS, *(x["encoder"]["vocab"] for x in configs))
    given = sys.argv[1:] if arguments is None else arguments
    found: dict[str, Any] = {
        "command": shlex.join(["python", "bench/independent_timing.py", *given]),
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "threads": options.threads,
        "timings": [],
        "bench": {},
    }
    for length in options.lengths:
        with tempfile.TemporaryDirectory() as kept:
            options.kept = Path(kept, "graphs")
            timings, report = compared(dense, options.results, length, options)
        found["timings"] += [{**asdict(x), "off": x.off} for x in timings]
        found["bench"][str(length)] = {**report, "command": ""}
        options.out.write_text(
            text_of(found, [dense, *options.results, options.out]), encoding="utf-8"
        )
        for x in timings:
            print(line(x))  # noqa: T201 - the table of a script


if __name__ == "__main__":
    main()
