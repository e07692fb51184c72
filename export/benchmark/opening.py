"""Open the models and read the texts of the `prumux-bench` command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

import torch

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.data.files import find_files
from prumux.optimizer.data.rows import Rows, read_texts
from prumux.optimizer.data.tokenize import Encoded, encode
from prumux.optimizer.pipeline.registry import parse_target

from .engine_kinds import OpenOptions, open_kinds
from .engines import OpenedModel, in_layouts, named, open_engine


def open_all(
    options: argparse.Namespace, keep: Sequence[Path | None], progress: Progress
) -> tuple[list[OpenedModel], dict[str, str]]:
    """Open all models in all requested engines; also return the engines that cannot run."""
    target = None if options.target is None else parse_target(options.target)
    threads, compiled = options.threads or cpu_threads(), options.compile
    torch.set_num_threads(threads)
    found, not_run = list[OpenedModel](), dict[str, str]()
    labels = distinct(options.models)
    with progress.task("opening", len(labels)) as step:
        for i, (name, label) in enumerate(zip(options.models, labels, strict=True)):
            fuse = i == 0 and not options.as_is
            if options.engines:
                how = OpenOptions(threads, options.device, fuse)
                some, missing = open_kinds(name, label, options.engines, how)
                found += some
                not_run |= missing
            else:
                for n, on in enumerate(in_layouts(name, target, options.arrivals)):
                    # The second layout is the ragged one.
                    folder = keep[i]
                    kept = folder / "ragged" if n and folder else folder
                    x = open_engine(name, on, threads, options.device, compiled, fuse, kept)
                    found.append(named(x, f"{label} (ragged)" if n else label))
            step()
    return found, not_run


def graph_folders(options: argparse.Namespace) -> list[Path | None]:
    """Make a folder for the graphs of each model; without --keep-graphs return None for each.

    Raises:
        UsageError: a folder cannot be made.
    """
    if options.keep_graphs is None:
        return [None] * len(options.models)
    found = [options.keep_graphs / Path(x).name for x in distinct(options.models)]
    for x in found:
        try:
            x.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--keep-graphs: {x} cannot be written: {error.strerror}\n"
                "name a folder of yours: --keep-graphs graphs"
            ) from error
    return found


def distinct(names: Sequence[str]) -> list[str]:
    """Make names distinct by adding a number to repeated names."""
    found: list[str] = []
    for name in names:
        others = (f"{name} ({i})" for i in count(2))
        found.append(next(x for x in chain([name], others) if x not in found))
    return found


def check_length(opened: Sequence[OpenedModel], length: int | None) -> None:
    """Check that every model accepts rows of this length.

    Raises:
        UsageError: a model has fewer positions.
    """
    for x in opened:
        if x.encoder is None or length is None:
            continue
        most = x.encoder.most_tokens
        if length > most:
            raise UsageError(
                f"--length {length} is over the {most} positions of '{x.name}': "
                f"--length {most}"
            )


def token_rows(opened: Sequence[OpenedModel], data: str) -> Encoded:
    """Tokenise the texts of `data` with the tokenizer of the first model that has one.

    Raises:
        UsageError: no model has a tokenizer.
    """
    for x in opened:
        if x.tokenizer is not None and x.encoder is not None and x.task is not None:
            return encode(text_rows([x], data), x.tokenizer, x.encoder)
    raise UsageError(
        "--length data needs a tokenizer, and none of the models has one\n"
        "name a folder first, or give --length 128"
    )


def text_rows(opened: Sequence[OpenedModel], data: str) -> Rows:
    """Read the validation texts of a folder, or the texts of a file, for the first model."""
    task, path, split = opened[0].task, Path(data), None
    assert task is not None
    if path.is_dir():
        split = "validation" if "validation" in find_files(path) else None
    return read_texts(path if path.exists() else data, task, split)
