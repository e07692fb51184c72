"""The task of a Hugging Face config, and config and task together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prumux.optimizer.base.errors import ModelError

from .checkpoint import read_sizes
from .families.config_fields import size
from .families.family import Family
from .families.registry import find_family
from .ir import Task
from .sizes import Encoder

Config = Mapping[str, Any]
LIMIT_LABELS = 100_000
"""Beyond this a config.json is taken for damaged, before anything of that size is made."""


def read_config(config: Config) -> tuple[Family, Encoder, Task]:
    """Family, sizes and task of a Hugging Face config.

    Raises:
        ModelError: unsupported architecture or task, or a size that is missing or wrong.
    """
    find_family(str(config.get("model_type")))  # before the task: the first thing to be said
    task = read_task(config)
    every = task.kind == "token-classification"
    family, encoder = read_sizes(config, len(task.labels), every_position=every)
    return family, encoder, task


def read_task(config: Config) -> Task:
    """The task from `architectures`, `problem_type` and `id2label`."""
    named = config.get("architectures") or [""]
    architecture = str(named[0] if isinstance(named, list | tuple) else named)
    if architecture and not architecture.endswith(
        ("ForSequenceClassification", "ForTokenClassification")
    ):
        raise ModelError(
            f"architecture '{architecture}' has no classification head\n"
            "give a model fine-tuned with AutoModelForSequenceClassification or "
            "AutoModelForTokenClassification"
        )
    problem = config.get("problem_type")
    if problem == "multi_label_classification":
        raise ModelError("problem_type 'multi_label_classification' is not supported yet")
    names = config.get("id2label") or {}
    if not isinstance(names, Mapping):
        raise ModelError(
            f"config.json: id2label is a {type(names).__name__}, not a map of names"
        )
    names = {str(i): str(name) for i, name in names.items()}
    strange = next((x for x in names if not x.isdecimal()), None)
    if strange is not None:
        raise ModelError(f"config.json: id2label names '{strange:.40}', ids are 0, 1, 2, ...")
    count = len(names) or size(config, "num_labels", default=2, most=LIMIT_LABELS)
    labels = tuple(names.get(str(i), f"LABEL_{i}") for i in range(count))
    token = architecture.endswith("ForTokenClassification")
    _check_labels(labels)
    regression = not token and (problem == "regression" or (problem is None and count == 1))
    return Task(
        kind="token-classification" if token else "text-classification",
        problem="regression" if regression else "classification",
        labels=labels,
    )


def _check_labels(labels: tuple[str, ...]) -> None:
    try:
        Task("text-classification", "classification", labels).check(len(labels))
    except ValueError as error:
        raise ModelError(
            f"config.json: {error}\ngive every label in id2label a name of its own"
        ) from error
