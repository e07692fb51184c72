"""Finds the tasks in this folder, and reads a model's task from its `config.json`."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import ModelError

from .task import Task

MAX_LABELS = 100_000
"""A config.json with more labels counts as damaged, before memory is allocated for them."""
DEFAULT_HEAD = "ForSequenceClassification"
"""The head that is assumed if `architectures` is missing."""


@functools.cache
def task_types() -> tuple[type[Task], ...]:
    """The tasks that the modules of this folder define, ordered by module name."""
    found: list[type[Task]] = []
    package = __package__ or ""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        for value in vars(importlib.import_module(f"{package}.{module.name}")).values():
            own = inspect.isclass(value) and value.__module__ == f"{package}.{module.name}"
            if own and issubclass(value, Task) and not inspect.isabstract(value):
                found.append(value)
    return tuple(found)


def from_config(config: Mapping[str, Any]) -> Task:
    """The task of a Hugging Face model, from `architectures`, `problem_type` and `id2label`.

    Raises:
        ModelError: no task fits the model, or the label names are wrong.
    """
    architecture = named_architecture(config)
    head = architecture or DEFAULT_HEAD
    fitting = [x for x in task_types() if head.endswith(x.head)]
    if not fitting:
        classes = sorted({x.auto_class() for x in task_types() if x.found_by_head})
        raise ModelError(
            f"config.json: architectures: architecture '{architecture:.60}' has no "
            "classification head\n"
            "for embeddings, say how its states are pooled: --pooling mean\n"
            f"else give a model fine-tuned with {' or '.join(classes)}"
        )
    labels, problem = _label_names(config), config.get("problem_type")
    chosen = next((x for x in fitting if x.reads(problem, len(labels))), None)
    if chosen is None:
        raise ModelError(
            f"config.json: problem_type '{problem!s:.60}' is not supported yet with "
            f"{len(labels)} labels"
        )
    task = chosen.of_config(labels, config)
    try:
        task.check(len(labels))
    except ValueError as error:
        raise ModelError(f"config.json: {error}") from error
    return task


def of_data(task: Task, columns: Callable[[], Collection[str]], metric: str | None) -> Task:
    """The task of a model on its data. Arguments as in `Task.of_data`."""
    found = (x.of_data(task, columns, metric) for x in task_types())
    return next((x for x in found if x is not None), task)


def named_architecture(config: Mapping[str, Any]) -> str:
    """The first name in `architectures` of a config; empty if there is none."""
    names = config.get("architectures") or [""]
    return str(names[0] if isinstance(names, list | tuple) else names)


def from_own_config(config: Mapping[str, Any], labels: int) -> Task:
    """The task of a model that prumux wrote.

    Args:
        config: the content of `config.json`.
        labels: the number of labels of the model's head.

    Raises:
        ValueError: `architectures` names no class of prumux, or the label names are wrong.
        LookupError: a field is missing.
    """
    architectures, problem = config["architectures"], config.get("problem_type")
    own = [x for x in task_types() if x.own_class() in architectures]
    if not own:
        raise ValueError(f"architectures is {architectures!r:.60}")
    names = config["id2label"]
    # A user may continue training with another `problem_type`, which selects another loss.
    chosen = next((x for x in own if x.reads(problem, labels)), own[0])
    task = chosen.of_config(tuple(names[str(i)] for i in range(len(names))), config)
    task.check(labels)
    return task


def from_report(shown: Mapping[str, Any]) -> type[Task]:
    """The task type of an entry that `Task.to_json` wrote; text classification if unknown."""
    wanted = shown.get("kind"), shown.get("problem")
    ordinary = next(x for x in task_types() if x.head == DEFAULT_HEAD)
    return next((x for x in task_types() if (x.kind, x.problem) == wanted), ordinary)


def kind_of(head: str) -> str:
    """The kind of the tasks with this `Task.head`."""
    return next(x.kind for x in task_types() if x.head == head)


def _label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label") or {}
    if not isinstance(names, Mapping):
        raise ModelError(
            f"config.json: id2label is a {type(names).__name__}, not a map of names"
        )
    names = {str(i): _label_name(str(i), name) for i, name in names.items()}
    strange = next((x for x in names if not x.isdecimal()), None)
    if strange is not None:
        raise ModelError(f"config.json: id2label names '{strange:.40}', ids are 0, 1, 2, ...")
    count = len(names) or _label_count(config)
    missing = next((i for i in range(len(names)) if str(i) not in names), None)
    if missing is not None:
        ids = ", ".join(sorted(names, key=int)[:8])
        raise ModelError(
            f"config.json: id2label has {count} labels, but none with id {missing}; "
            f"it has {ids}\n"
            f"number the labels from 0 to {count - 1}, as the model's outputs are"
        )
    return tuple(names.get(str(i), f"LABEL_{i}") for i in range(count))


def _label_name(i: str, name: Any) -> str:
    """A label's name as text. Some configs contain numbers or truth values as names."""
    text = str(name) if isinstance(name, str | int | float) else None
    if text is None or any("\ud800" <= x <= "\udfff" for x in text):
        raise ModelError(
            f"config.json: id2label has the name {name!r:.40} for {i:.20}, it must be a text"
        )
    return text


def _label_count(config: Mapping[str, Any]) -> int:
    count = config.get("num_labels")
    count = 2 if count is None else count
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_LABELS:
        raise ModelError(
            f"config.json: num_labels is {count!r:.40}, it must be a whole number "
            f"from 1 to {MAX_LABELS}"
        )
    return count
