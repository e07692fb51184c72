"""Finds the head of a checkpoint by its weights, if config.json names none.

Some checkpoints keep the config of their base model, which names `BertForMaskedLM` or nothing.
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
    """The config with the architecture that fits the tensors, and a remark about it.

    An architecture fits if all its tensors are in the checkpoint. The config is unchanged and
    there is no remark if no architecture fits, or if the config already names an architecture
    with the head of a task.

    Raises:
        ModelError: several heads fit the tensors equally well.
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
