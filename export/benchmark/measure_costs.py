"""`prumux-bench --measure-costs`: write the cost tables of this machine to a portable file.

Time depends on sizes alone, so the weights are random and no data is needed. The model may be
a folder with `config.json` only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.environment import device, provenance
from prumux.optimizer.base.errors import MissingError, PassError, UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import user_cache
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.model.artifact import from_config
from prumux.optimizer.model.folder import read_json
from prumux.optimizer.model.hf_checkpoint import read_config
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder, Multiplexing
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.costs import CostTable, TargetCosts
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.pipeline.target import Target, on_engine
from prumux.optimizer.tasks.task import Task
from prumux.optimizer.timing.calibration import random_model
from prumux.optimizer.timing.cost_file import write_costs
from prumux.optimizer.timing.cost_table import measure_table

EVERY = (
    "onnx",
    "onnx{device=cuda}",
    "tensorrt{flavor=tensorrt}",
    "tensorrt{flavor=rtx}",
)
"""Targets to measure, if they run on this machine."""
MIXED = (2, 5, 10)
"""Numbers of rows that a search may mix into one."""
CALIBRATION_ROWS = 64


@dataclass(frozen=True)
class CostOptions:
    """The shapes and targets to measure."""

    model: str
    file: Path
    target: str | None = None
    """None = all targets that run on this machine."""
    batch: int = 32
    length: int = 128
    mixed: tuple[int, ...] = MIXED
    rounds: int = 5
    threads: int = 1
    device: str = "auto"
    """`cpu` or `cuda` = measure only the targets of this device."""


def measure_costs(
    options: CostOptions, command: str, progress: Progress
) -> dict[str, TargetCosts]:
    """Measure the costs, and write the file after each target.

    Returns:
        The costs by `Target.timed_as`.

    Raises:
        MissingError: no target runs here.
        PassError: the times of every target were too uneven.
        UsageError: the model is compressed already or takes fewer tokens, or the file cannot
            be written.
    """
    encoder, task = dense_sizes(options.model)
    if options.length > encoder.most_tokens:
        raise UsageError(
            f"--length {options.length} is over the {encoder.most_tokens} positions of "
            f"'{options.model}': --length {encoder.most_tokens}"
        )
    check_file(options.file)
    targets, cores = _targets(options, encoder, progress), CoreMonitor()
    ctx = _context(encoder, task, options, progress, cores)
    found: dict[str, TargetCosts] = {}
    failed: PassError | None = None
    for target in targets:
        progress.say(f"costs of {target.timed_as}")
        try:
            found[target.timed_as] = _costs_of(target, encoder, options, ctx)
        except PassError as error:
            progress.say(f"{target.timed_as}: left out, {_first(error)}")
            failed = error
            continue
        about = {**provenance(cores), "command": command}
        serving = options.batch, options.length
        write_costs(
            options.file,
            encoder,
            serving=serving,
            targets=found,
            machine=machine(options.threads),
            about=about,
        )
    if failed is not None and not found:
        raise PassError(
            f"{_first(failed)}\ntry again when nothing else runs on this machine, or with "
            f"--rounds {3 * options.rounds}",
            exit_code=failed.exit_code,
        )
    return found


def dense_sizes(name: str) -> tuple[Encoder, Task]:
    """Sizes and task of a model. Weights are read only if there is no `config.json`.

    Raises:
        ModelError: the model cannot be read.
        UsageError: the model is compressed already.
    """
    path = Path(name).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if file.suffix == ".json" and file.exists():
        config = read_json(file)
        if config.get("model_type") == "prumux":
            encoder, task = from_config(config, file)
        else:
            _, encoder, task = read_config(config)
    else:
        model = load_model(name)
        encoder, task = model.encoder, model.task
    if encoder.mux is not None or len(set(encoder.layers)) > 1:
        raise UsageError(
            f"'{name}' is compressed already: {encoder}\n"
            "costs are measured for the model that was given to prumux-opt: name that one"
        )
    return replace(encoder, pool_early=False), task


def machine(threads: int) -> dict[str, str]:
    """Facts of this machine: processor, threads, and the GPU if torch sees one."""
    found = {**device(), "threads": str(threads)}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found |= {"gpu": str(torch.cuda.get_device_name()), "gpu_sm": f"sm{major}{minor}"}
    return found


def check_file(path: Path) -> None:
    """Check that the file can be written, before timing takes minutes.

    Raises:
        UsageError: the file cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder: --measure-costs {path / 'costs.json'}")
    there = path.exists()
    try:
        with path.open("ab"):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--measure-costs {path} cannot be written: {why}\n"
            "name a file in a folder of yours: --measure-costs costs.json"
        ) from error
    if not there:
        path.unlink()


def _targets(options: CostOptions, encoder: Encoder, progress: Progress) -> list[Target]:
    """The concrete targets to measure, each once.

    Raises:
        MissingError: the target that the user gave, or every target, cannot run here.
    """
    found: dict[str, Target] = {}
    missing: MissingError | None = None
    for text in EVERY if options.target is None else (options.target,):
        given = parse_target(text)
        on_gpu = text != "onnx" if options.target is None else options.device == "cuda"
        if options.target is None and options.device not in ("auto", _kind(on_gpu)):
            continue
        try:
            for x in (given.baseline(), *given.variants(encoder)):
                x.check()
                found.setdefault(x.timed_as, x)
        except MissingError as error:
            missing = error
            if options.target is None:
                progress.say(f"{text}: not measured, {_first(error)}")
    if not found:
        raise missing or MissingError("no engine runs here: pip install 'prumux[cpu]'")
    return list(found.values())


def _kind(on_gpu: bool) -> str:
    return "cuda" if on_gpu else "cpu"


def _costs_of(
    target: Target, encoder: Encoder, options: CostOptions, ctx: Context
) -> TargetCosts:
    ctx = replace(ctx, target=target)
    full = replace(encoder, pool_early=encoder.reads_first)
    single = measure_table(full, ctx, options.rounds)
    mixed: dict[int, CostTable] = {}
    for n in options.mixed:
        try:
            mixes = replace(full, mux=Multiplexing(n))
            mixed[n] = measure_table(mixes, ctx, options.rounds)
        except PassError as error:
            ctx.progress.say(f"{target.timed_as}, {n} mixed rows: left out, {_first(error)}")
    with on_engine(target.draft(), ctx.dense, ctx) as engine:
        facts = dict(engine.describe())
    return TargetCosts(single, mixed, facts)


def _context(
    encoder: Encoder, task: Task, options: CostOptions, progress: Progress, cores: CoreMonitor
) -> Context:
    """A context with random weights, and random rows of the batch size and length."""
    random = np.random.default_rng(0)
    ids = random.integers(1, encoder.vocab, (options.batch, options.length))
    ids[ids == encoder.pad_id] = (
        encoder.pad_id + 1 if encoder.pad_id + 1 < encoder.vocab else 0
    )
    ones = np.ones_like(ids)
    types = ones - 1 if encoder.token_types else None
    some = slice(CALIBRATION_ROWS)
    rows = Encoded(
        Ragged.of(ids[some]),
        None if types is None else Ragged.of(types[some]),
        None,
        encoder.pad_id,
    )
    batch = Batch(
        rows=np.arange(options.batch),
        input_ids=ids,
        attention_mask=ones,
        token_type_ids=types,
        labels=None,
    )
    bare = Context(
        fit=rows,
        workload=(batch,),
        dense=Model(encoder, {}, task, Masks.full(encoder)),
        threads=options.threads,
        progress=progress,
        cache=user_cache(),
        cores=cores,
    )
    return replace(bare, dense=random_model(encoder, bare))


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0]
