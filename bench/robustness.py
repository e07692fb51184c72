"""Test prumux with damaged inputs, kills at random moments, and concurrent callers.

    python bench/robustness.py mutations        # 10,000 mutated inputs
    python bench/robustness.py kills            # 100 SIGKILLs, each run resumed
    python bench/robustness.py crossed          # a million rows from 64 threads
    python bench/robustness.py promise --model minilm-sst2 --data sst2 --emotions goemotions

Each part writes `bench/results/robustness-PART.json` and prints its table at the end. Finished
steps are stored in `--work`, so an interrupted part can continue. `mutations --only 4711`
replays one input. `bench/README.md` describes the parts. The script runs on Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for imports of bench.robust and the helpers of the tests

Part = tuple[dict[str, Any], list[str]]


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def one_core() -> None:
    """Stay on one core: threads slow a tiny model down, and do not survive a fork."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def mutations(options: argparse.Namespace) -> Part:
    """Run mutated inputs, see `robust/mutate.py`."""
    from bench.robust import mutate

    os.environ["HOME"] = str(options.work / "home")
    bench = mutate.prepare(options.work / "mutations")
    if options.only is not None:
        case = mutate.run_case(bench, options.seed, options.only)
        return {"case": case.number}, [f"{k}: {v}" for k, v in vars(case).items()]
    parts = options.work / f"mutations-{options.seed}.jsonl"
    numbers = range(options.first, options.first + options.cases)
    cases = mutate.run_all(bench, options.seed, numbers, parts, say)
    found = mutate.summary(cases, bench, options.seed)
    return found, mutate.lines(found)


def crossed(options: argparse.Namespace) -> Part:
    """Send rows from many threads, see `robust/crossed.py`."""
    from bench.robust import crossed as part

    lanes = part.run(options.work / "crossed", options.rows)
    return {"lanes": lanes}, part.lines(lanes)


def kills(options: argparse.Namespace) -> Part:
    """Kill runs and resume them, see `robust/kills.py`."""
    from bench.robust import kills as part

    runs = part.run(options.work / "kills", options.kills, options.seed, say)
    found = part.summary(runs, options.seed)
    return found, part.lines(found)


def promise(options: argparse.Namespace) -> Part:
    """Simulate users of all tasks, see `robust/promise.py` and `guarantee.py`."""
    from bench.robust import promise as part

    if not (options.model and options.data and options.emotions):
        raise SystemExit("write: promise --model FOLDER --data FOLDER --emotions FOLDER")
    given = part.tasks(options.work / "promise", options.model, options.data, options.emotions)
    given = [x for x in given if not options.metrics or x.metric in options.metrics]
    found = part.run(options.work / "promise", given, options.users)
    return {"seed": 0, "tasks": found}, part.lines(found)


PARTS: dict[str, Callable[[argparse.Namespace], Part]] = {
    "mutations": mutations,
    "kills": kills,
    "crossed": crossed,
    "promise": promise,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one part, write its JSON, print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: bench/results/robustness-PART.json")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "prumux-robustness"
    )
    parser.add_argument("--cases", type=int, default=10_000, help="mutated inputs")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--only", type=int, help="replay the mutated input of this number")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each way")
    parser.add_argument("--users", type=int, default=1000, help="simulated users of each cell")
    parser.add_argument("--model", help="a model of two classes, fine-tuned on --data")
    parser.add_argument("--data", help="its data: train, validation and test in parquet")
    parser.add_argument("--emotions", help="data of more than 20 classes, with labels.json")
    parser.add_argument("--metrics", nargs="+", help="simulate budgets on these metrics only")
    options = parser.parse_args(argv)
    if options.part != "promise":
        one_core()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    from prumux.optimizer.base.environment import provenance

    facts = provenance()  # before the part runs, because the checkout may change meanwhile
    found, table = PARTS[options.part](options)
    out = options.out or ROOT / "bench" / "results" / f"robustness-{options.part}.json"
    if options.only is None:
        document = {"schema_version": 1, "part": options.part, **found, **facts}
        out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print("\n".join(table))  # noqa: T201


if __name__ == "__main__":
    main()
