"""Measure prumux on this GPU with one command, the most valuable answers first.

    python bench/gpu.py --minutes 15 --model MODEL --data DIR
    python bench/gpu.py --minutes 120 --task mnli MODEL DIR --task qqp MODEL DIR   # resumes
    python bench/gpu.py --device cpu --tiny --minutes 3                       # a dry run

    part  time   what
    a     3 min  whether engines run, parity, throughput by batch, length, sparsity and
                 rows in a pass; torch (CUDA graphs, compiled) and a matrix product too
    b     1 min  costs of this device, for `prumux-opt --costs` on any machine
    c     4 min  `prumux-opt --budget 2%` and `5%` with training; needs --model and --data
    d     rest   PruMUX's study (https://arxiv.org/abs/2305.14706): 60, 80, 90, 95 % pruned x
                 1, 2, 5, 10 rows in a pass, trained; needs --task, else --model and --data

Each finished result is stored in `--work`. So an interrupted run can continue, and the table
at the end has the results of all runs. If `--parts` does not contain d, the other parts share
all the time. The script uses installed engines and downloads nothing. No stored file is larger
than 16 MiB. Without a GPU the exit code is 5; `--device cpu` makes a dry run.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for imports of bench.gpu_parts

PARTS = "abcd"
ENGINES = ("tensorrt", "tensorrt-rtx-cu13-bindings")
TINY: dict[str, Any] = {
    "shapes": ("tiny",),
    "cells": ((0.0, 1), (0.6, 1), (0.0, 2), (0.6, 2)),
    "batches": (1, 8),
    "lengths": (16,),
    "seconds": 0.05,
    "compiled": False,
}
"""Sizes of part a with --tiny."""
TINY_STUDY: dict[str, Any] = {"sparsities": (0.6, 0.9), "mixed": (1, 2)}
SHARES = {"a": 3.0, "b": 1.0, "c": 4.0}
"""Minutes of each part. Part d takes the rest of the time."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts, and print the table."""
    options = _options(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    from prumux.optimizer.base.processors import cpu_threads

    name = _device_name(options.device)
    torch.set_num_threads(cpu_threads())
    options.work.mkdir(parents=True, exist_ok=True)
    from bench.gpu_parts.table import lines
    from bench.gpu_parts.work import Work
    from prumux.optimizer.base.environment import provenance

    facts = {**provenance(), "name": name}
    facts["versions"] |= _engine_versions()
    # Store names only: paths of one machine mean nothing on another.
    given = [Path(x).name if "/" in x else x for x in argv or sys.argv[1:]]
    facts["command"] = shlex.join(["python", "bench/gpu.py", *given])
    ends = time.monotonic() + 60 * options.minutes
    work = Work(options.work, ends, facts, options.retry)
    try:
        run(options, work)
    except KeyboardInterrupt:
        print("interrupted: repeat the command to go on", file=sys.stderr)  # noqa: T201
    text = "\n".join(lines(work))
    (options.work / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(text)  # noqa: T201


def run(options: argparse.Namespace, work: Any) -> None:
    """Run the parts that `options` name, each within its time."""
    from bench.gpu_parts import commands, engines, study

    tiny, device = options.tiny, options.device
    sizes: dict[str, Any] = TINY if tiny else {}
    if device == "cpu":
        sizes = {**sizes, "precision": "fp32", "matrix": 512}
    plan = engines.Plan(device=device, **sizes)
    shapes, batch, length = plan.shapes, max(plan.batches), max(plan.lengths)
    costs = commands.Costs(device, shapes, 32 if tiny else 256, 32 if tiny else 128)
    tasks = [study.StudyTask(*x) for x in options.task]
    if options.model and not tasks:
        tasks = [study.StudyTask("given", options.model, options.data)]
    for part in options.parts:
        share = work if part == "d" else work.until(60 * SHARES[part] * options.scale)
        if part == "a":
            engines.run(plan, share)
        elif part == "b":
            costs.run(share)
        elif part == "c" and options.model:
            with _scratch(options.scratch) as folder:
                seconds = 0.8 * max(1.0, share.left_s)
                given = (device, options.model, options.data, seconds, Path(folder))
                commands.Budgets(*given, effort=options.effort).run(share)
        elif part == "d" and tasks:
            grid = TINY_STUDY if tiny else {}
            minutes = options.cell_minutes
            study.Study(
                device, tuple(tasks), options.seeds, minutes, min(batch, 128), length, **grid
            ).run(work)
        else:
            needs = "--model MODEL --data DIR" if part == "c" else "--task NAME MODEL DIR"
            print(f"part {part}: left out, it needs {needs}", file=sys.stderr)  # noqa: T201


def _scratch(folder: Path | None) -> AbstractContextManager[str]:
    """The folder of large files. Without `--scratch` it is a temporary folder."""
    if folder is None:
        return tempfile.TemporaryDirectory(prefix="prumux-gpu-")
    folder.mkdir(parents=True, exist_ok=True)
    return nullcontext(str(folder))


def _device_name(device: str) -> str:
    """Name of the device. Without a GPU the command ends with exit code 5."""
    import torch

    from prumux.optimizer.base.environment import cpu

    if device == "cpu":
        return f"CPU (a dry run, not a GPU): {cpu()}"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, sm{''.join(map(str, _capability()))}"
    build = torch.version.cuda or "none: a CPU build"
    print(  # noqa: T201
        f"no GPU: torch {torch.__version__} (CUDA {build}) sees no device\n"
        "install a torch with CUDA and the driver, or try the command on this CPU: "
        "python bench/gpu.py --device cpu --tiny --minutes 3",
        file=sys.stderr,
    )
    raise SystemExit(5)


def _engine_versions() -> dict[str, str]:
    """Versions of CUDA and of the installed engines for GPUs."""
    import torch

    found = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    for package in ENGINES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _capability() -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability()


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=15.0, help="of this run, default 15")
    add("--work", type=Path, default=Path("gpu-work"), help="folder of finished results")
    add("--scratch", type=Path, help="folder of large files that lets part c resume")
    add("--parts", default=PARTS, help="such as ab; in this order")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--tiny", action="store_true", help="tiny sizes, to try the command")
    add("--model", help="a fine-tuned model for part c")
    add("--data", help="its data")
    add("--effort", choices=["quick", "standard", "thorough"], default="standard")
    add("--task", nargs=3, action="append", default=[], metavar=("NAME", "MODEL", "DIR"))
    add("--seeds", type=int, default=3, help="of part d, as far as time allows; default 3")
    add("--cell-minutes", type=float, default=2.0, help="of each training in part d")
    add("--retry", action="store_true", help="make results again that failed")
    options = parser.parse_args(argv)
    if not 0 < options.minutes < math.inf:
        parser.error(f"--minutes is {options.minutes:g}, give a number above 0")
    if not options.cell_minutes > 0 or options.seeds < 1:
        parser.error("--cell-minutes must be above 0, --seeds at least 1")
    if not options.parts or not set(options.parts) <= set(PARTS):
        parser.error(f"--parts is '{options.parts}', it takes letters of {PARTS}")
    if (options.model is None) != (options.data is None):
        parser.error("--model and --data belong together")
    limited = sum(SHARES.get(x, 0.0) for x in options.parts)
    options.scale = options.minutes / limited if limited else 1.0
    if "d" in options.parts:  # part d takes the rest of the time
        options.scale = min(1.0, options.scale)
    return options


if __name__ == "__main__":
    main()
