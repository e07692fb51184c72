"""Load model and data, and check that they fit together. Nothing is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prumux.optimizer.base.devices import device
from prumux.optimizer.base.environment import device as cpu_name
from prumux.optimizer.base.errors import ModelError, UsageError
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import key, user_cache
from prumux.optimizer.data.predict import workload
from prumux.optimizer.data.rows import Splits
from prumux.optimizer.data.splits import load_splits
from prumux.optimizer.data.tokenize import Encoded, encode, row_limit
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.costs import Costs
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.pipeline.target import Target
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.tasks.labels import Labels
from prumux.optimizer.tasks.metrics import AGREEMENT
from prumux.optimizer.tasks.task import Task
from prumux.optimizer.timing.cost_file import read_costs
from prumux.optimizer.timing.serving_point import ServingPoint

from .request import Request

BATCH = 32
"""Default number of rows in a batch."""
NEAR = 16
"""A row of similar length is drawn from rows at most this many ranks shorter or longer."""


def open_evaluator(request: Request, target: Target, progress: Progress) -> Evaluator:
    """Load model and data, check that they fit together, and make the evaluator.

    Raises:
        ModelError, DataError, UsageError: an input is missing, damaged or does not fit.
        MissingError: a library or device is missing.
    """
    target.check_search()
    costs = _read_costs(request, target, progress)
    batch, length = serving_of(request, costs)
    torch_device = device(request.device)
    torch.manual_seed(request.seed)
    threads = cpu_threads()
    torch.set_num_threads(threads)
    given, tokenizer = _load(request, target)
    if costs is not None:
        check_costs(costs, given.encoder, target, progress)
    splits = _load_splits(request, given.task, progress)
    model = given if splits.task is None else replace(given, task=splits.task)
    row_limit(tokenizer, model.encoder, length, splits.fit.text_b is not None)
    coded = {k: encode(x, tokenizer, model.encoder) for k, x in splits.by_role().items()}
    metric = _metric(request, model.task, coded["certify"].labels)
    ctx = Context(
        fit=match_lengths(coded["fit"], coded["certify"], request.seed),
        workload=workload(coded["certify"], batch, length, request.arrivals),
        dense=model,
        train=coded["fit"].texts(),
        select=coded["select"].texts(),
        target=target,
        seed=request.seed,
        arrivals=request.arrivals,
        threads=threads,
        device=torch_device,
        progress=progress,
        cache=user_cache(),
        costs=costs,
    )
    return Evaluator(
        model=model,
        target=target,
        ctx=ctx,
        select_rows=coded["select"],
        certify_rows=coded["certify"],
        test_rows=coded.get("test"),
        metric=metric,
        data_digest=splits.digest(),
        tokenizer_digest=key(tokenizer.backend_tokenizer.to_str()),
        notes=splits.notes,
        warnings=(*model.remarks, *splits.warnings, *timed_elsewhere(target, costs)),
        serving=ServingPoint(batch, length, ctx.length, threads, request.arrivals),
        targets=target.variants(model.encoder)[:1],
    )


def _read_costs(request: Request, target: Target, progress: Progress) -> Costs | None:
    """Read the costs file, if the user gave one, and show the target's notice."""
    costs = None if request.costs is None else read_costs(Path(request.costs).expanduser())
    timed = "on this CPU" if costs is None else f"by '{costs.path}'"
    if notice := target.notice(timed):
        progress.say(notice)
    return costs


def _load(request: Request, target: Target) -> tuple[Model, Any]:
    """Load the given model and its tokenizer.

    Raises:
        ModelError: the model is a cascade, or has no tokenizer.
        UsageError: the target's options do not fit the model.
    """
    model = load_model(request.model, request.pooling, request.dimensions)
    if model.second is not None:
        raise ModelError(
            f"'{request.model}' is a cascade of two models, which no pass takes\n"
            "give the model that it was made from"
        )
    if request.stride is not None:
        model = replace(model, task=model.task.with_stride(request.stride))
    target.check_model(model)
    if model.tokenizer is None:
        raise ModelError(
            f"no tokenizer lies beside '{request.model}'\n"
            "copy tokenizer.json and tokenizer_config.json of the model into the same folder"
        )
    return model, model.tokenizer


def _load_splits(request: Request, task: Task, progress: Progress) -> Splits:
    """Load the rows of each role, and print notes and warnings."""
    path = Path(request.model)
    beside = path if path.is_dir() else path.parent if path.is_file() else None
    splits = load_splits(
        request.data,
        request.train,
        request.validation,
        request.test,
        beside,
        task,
        dict(request.columns),
        request.seed,
        request.labels,
        request.metric,
        request.certify_on_train,
    )
    for note in splits.notes:
        progress.say(f"data: {note}")
    for warning in splits.warnings:
        progress.say(f"warning: {warning}")
    return splits


def serving_of(request: Request, costs: Costs | None) -> tuple[int, int | None]:
    """Rows in a batch and tokens in a row, from the request or from the costs file.

    Raises:
        UsageError: the request's serving point differs from the costs file's.
    """
    if costs is None:
        return request.batch or BATCH, request.length
    for name, given, measured in (
        ("batch", request.batch, costs.batch),
        ("length", request.length, costs.length),
    ):
        if given is not None and given != measured:
            again = replace(
                costs,
                batch=request.batch or costs.batch,
                length=request.length or costs.length,
            )
            raise UsageError(
                f"'{costs.path}': serving.{name} is {measured}, --{name} is {given}\n"
                f"leave --{name} out, or measure at it on the serving machine: "
                f"{again.again}"
            )
    return costs.batch, costs.length


def check_costs(costs: Costs, encoder: Encoder, target: Target, progress: Progress) -> None:
    """Check that the costs file was measured for this model and the targets of this run.

    Raises:
        UsageError: another model or other targets were measured; the message names file and
            key.
    """
    costs.check_model(encoder)
    try:
        for needed in (target.baseline(), target.variants(encoder)[0]):
            costs.on(needed.timed_as)
    except UsageError as error:
        whole = (
            x for x in costs.targets if parse_target(x).baseline().timed_as in costs.targets
        )
        other = next(whole, None)
        cure = "" if other is None else f"\nor choose for what was: --target '{other}'"
        raise UsageError(f"{error}{cure}") from error
    progress.say(
        f"costs: candidates are timed by '{costs.path}', measured on {costs.name} "
        f"({costs.date}), and not on this machine"
    )


def timed_elsewhere(target: Target, costs: Costs | None) -> tuple[str, ...]:
    """A warning if candidates are timed on this CPU instead of the target's engine."""
    if costs is not None or target.runs_here:
        return ()
    return (
        f"the engine of {target} cannot be timed here: candidates were chosen, and all times "
        f"measured, on this CPU ({cpu_name()['cpu']}); measure on the serving machine: "
        "prumux-bench --measure-costs costs.json MODEL, then add --costs costs.json",
    )


def _metric(request: Request, task: Task, labels: Labels | None) -> str:
    """The metric of the request; without one, the usual metric for task and data."""
    usual = AGREEMENT if labels is None else task.usual_metric(labels)
    metric = request.metric or usual
    if task.metric(metric) not in task.fitting(labels) and labels is not None:
        raise UsageError(
            f"metric '{metric}' does not fit this data, which allows "
            f"{', '.join(x.name for x in task.fitting(labels))}: write, say, --metric {usual}"
        )
    if task.metric(metric).needs_labels and labels is None:
        raise UsageError(
            f"metric '{metric}' needs labels and the data has none\n"
            "name the label column with --columns label=NAME, or leave --metric out to keep "
            "agreement with the given model"
        )
    return metric


def match_lengths(fit: Encoded, like: Encoded, seed: int, limit: int = 4096) -> Encoded:
    """At most `limit` random fit rows with about the length distribution of `like`.

    Scores and refits should use rows of the lengths that the model will serve. Training texts
    may be much shorter: SST-2 trains on phrases.
    """
    random = np.random.default_rng(seed)
    order = np.argsort(fit.lengths, kind="stable")
    ranks = np.searchsorted(
        fit.lengths[order], random.permutation(np.resize(like.lengths, limit))
    )
    free = np.ones(len(order), dtype=bool)
    picked: list[int] = []
    for rank in ranks:
        low, high = max(0, int(rank) - NEAR), min(len(order), int(rank) + NEAR)
        near = low + np.flatnonzero(free[low:high])
        if len(near):
            at = int(random.choice(near))
            free[at] = False
            picked.append(int(order[at]))
    return fit.take(picked)
