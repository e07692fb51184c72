"""The head of a checkpoint whose config.json names none, found by its weights.

The config of a base model names `BertForMaskedLM` or nothing, whatever was trained on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.hf_checkpoint import read_config, tensor_names
from prumux.optimizer.tasks.registry import named_architecture, task_types

from .tensor_names import named


def with_architecture(
    config: Mapping[str, Any], found: Mapping[str, Tensor]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """A config with the architecture whose tensors are all there, and a line that says so.

    The config itself, and no line, if it names an architecture with a head of some task, or
    if the tensors of no head are there.

    Raises:
        ModelError: the tensors fit several heads alike.
    """
    given = named_architecture(config)
    own = any(".qa_outputs." in f".{x}" for x in found)
    kinds = [x for x in task_types() if x.found_by_head and x.finds_spans <= own]
    heads = tuple(dict.fromkeys(x.head for x in kinds))
    if given.endswith(tuple(x.head for x in task_types())):
        return config, ()
    fitting: dict[str, set[str]] = {}
    for head in heads:
        family, encoder, task = read_config({**config, "architectures": [f"Model{head}"]})
        expected = tensor_names(family, encoder, spans=task.finds_spans)
        if expected <= named(found, expected).tensors.keys():
            fitting[head] = expected
    if not fitting:
        return config, ()
    chosen = max(fitting, key=lambda x: len(fitting[x]))
    says = f"names '{given:.60}'" if given else "names no architectures"
    if any(x != chosen and not fitting[x] < fitting[chosen] for x in fitting):
        choices = " or ".join(f'["Model{x}"]' for x in fitting)
        raise ModelError(
            f"config.json {says}, and the weights fit several heads\n"
            f'add to config.json: "architectures": {choices}'
        )
    line = f"config.json {says}; the weights are those of {chosen.removeprefix('For')}"
    return {**config, "architectures": [f"Model{chosen}"]}, (line,)
