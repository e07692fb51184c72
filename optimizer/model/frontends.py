"""Family, sizes and task of a Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prumux.optimizer.tasks import registry
from prumux.optimizer.tasks.task import Task

from .checkpoint import read_sizes
from .families.family import Family
from .families.registry import find_family
from .sizes import Encoder

Config = Mapping[str, Any]


def read_config(config: Config) -> tuple[Family, Encoder, Task]:
    """Family, sizes and task of a Hugging Face config.

    Raises:
        ModelError: unsupported architecture or task, or a size that is missing or wrong.
    """
    find_family(str(config.get("model_type")))  # before the task: the first thing to be said
    task = registry.from_config(config)
    every = task.pooling == "all"
    family, encoder = read_sizes(config, len(task.labels), every_position=every)
    return family, encoder, task
