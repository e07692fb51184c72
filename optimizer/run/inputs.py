"""Loads model and data and checks that they fit together; writes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from prumux.optimizer.base.devices import device
from prumux.optimizer.base.errors import ModelError, UsageError
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import key, user_cache
from prumux.optimizer.data.layouts import flattened
from prumux.optimizer.data.predict import workload
from prumux.optimizer.data.splits import load_splits
from prumux.optimizer.data.tokenize import Encoded, encode, row_limit
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.target import Target
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.tasks.labels import Labels
from prumux.optimizer.tasks.metrics import AGREEMENT
from prumux.optimizer.tasks.task import Task
from prumux.optimizer.timing.serving_point import ServingPoint

from .request import Request

NEAR = 16
"""A row of similar length is drawn among this many ranks on either side."""


def open_evaluator(request: Request, target: Target, progress: Progress) -> Evaluator:
    """Load model and data, check that they fit together, and make the evaluator.

    Raises:
        ModelError, DataError, UsageError: an input is missing, damaged or does not fit.
        MissingError: a library or device is missing.
    """
    target.check_search()
    if notice := target.notice():
        progress.say(notice)
    torch_device = device(request.device)
    torch.manual_seed(request.seed)
    threads = cpu_threads()
    torch.set_num_threads(threads)
    model = load_model(request.model, request.pooling, request.dimensions)
    target.check_model(model)
    if model.tokenizer is None:
        raise ModelError(
            f"no tokenizer lies beside '{request.model}'\n"
            "copy tokenizer.json and tokenizer_config.json of the model into the same folder"
        )
    path = Path(request.model)
    beside = path if path.is_dir() else path.parent if path.is_file() else None
    splits = load_splits(
        request.data,
        request.train,
        request.validation,
        request.test,
        beside,
        model.task,
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
    row_limit(model.tokenizer, model.encoder, request.length, splits.fit.text_b is not None)
    given = {
        "fit": splits.fit,
        "select": splits.select,
        "certify": splits.certify,
        "test": splits.test,
    }
    coded = {
        role: encode(rows, model.tokenizer, model.encoder)
        for role, rows in given.items()
        if rows is not None
    }
    metric = _metric(request, model.task, coded["certify"].labels)
    ctx = Context(
        fit=match_lengths(coded["fit"], coded["certify"], request.seed),
        workload=workload(coded["certify"], request.batch, request.length),
        dense=model,
        train=coded["fit"].texts(),
        select=coded["select"].texts(),
        target=target,
        seed=request.seed,
        threads=threads,
        device=torch_device,
        progress=progress,
        cache=user_cache(),
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
        tokenizer_digest=key(model.tokenizer.backend_tokenizer.to_str()),
        notes=splits.notes,
        warnings=(*model.remarks, *splits.warnings),
        serving=ServingPoint(request.batch, request.length, ctx.length, threads),
        targets=target.variants(model.encoder)[:1],
        certify_texts=flattened(splits.certify) if coded["certify"].layout else splits.certify,
    )


def _metric(request: Request, task: Task, labels: Labels | None) -> str:
    """The metric that was asked for, or the one that fits task and data."""
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
    """Fit rows with the length distribution of `like`, at most `limit`, in random order.

    Training texts may be much shorter than served ones (SST-2 trains on phrases). Scores and
    refits should see the lengths that the model will serve.
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
