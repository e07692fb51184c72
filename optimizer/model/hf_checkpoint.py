"""Hugging Face checkpoints: a config becomes sizes, a state dict our weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.tasks import registry
from prumux.optimizer.tasks.task import Task

from .families.family import Config, Family, Part
from .families.registry import find_family
from .sizes import Encoder
from .weights import expected_shapes


def read_config(config: Config) -> tuple[Family, Encoder, Task]:
    """Family, sizes and task of a Hugging Face config.

    Raises:
        ModelError: unsupported architecture or task, or a size that is missing or wrong.
    """
    family = find_family(str(config.get("model_type")))
    if config.get("is_decoder"):
        raise ModelError(
            "config.json: is_decoder is true: a position then attends to earlier ones only, "
            "prumux's attend to all\nif the model was trained as an encoder, remove is_decoder"
        )
    task = registry.from_config(config)
    encoder = replace(family.sizes(config), labels=len(task.labels))
    if task.pooling == "all":
        encoder = family.for_every_position(encoder)
    return family, encoder, task


def read_weights(
    family: Family, encoder: Encoder, found: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Canonical float32 weights out of a Hugging Face state dict, strict on names and shapes.

    Raises:
        ModelError: a tensor is missing, left over, of the wrong shape or not finite.
    """
    found = {_modern(_unwrap(name)): tensor for name, tensor in found.items()}
    weights: dict[str, Tensor] = {}
    used = set()
    for name, shape in expected_shapes(encoder).items():
        source = hf_source(family, encoder, name)
        weights[name] = _read(found, source, shape).detach().to("cpu").float().contiguous()
        used.add(source.tensor)
    left = sorted(n for n in found.keys() - used if not _ignorable(n))
    if left:
        raise ModelError(
            f"the checkpoint holds {len(left)} tensors that config.json does not call for, "
            f"the first is '{left[0]}'"
        )
    return weights


def hf_source(family: Family, encoder: Encoder, name: str) -> Part:
    """Which tensor of a checkpoint, or which part of one, a canonical weight is."""
    stem, _, kind = name.rpartition(".")
    layer = re.match(r"layers\.(\d+)\.", stem)
    pattern = re.sub(r"layers\.\d+\.", "layers.{i}.", stem)
    theirs = family.names(encoder)[pattern]
    part = Part(theirs, 0, 1) if isinstance(theirs, str) else theirs
    tensor = part.tensor.replace("{i}", layer[1] if layer else "")
    return replace(part, tensor=f"{tensor}.{kind}")


def _read(found: Mapping[str, Tensor], source: Part, shape: tuple[int, ...]) -> Tensor:
    """One weight, checked."""
    if source.tensor not in found:
        raise ModelError(
            f"the checkpoint has no tensor '{source.tensor}' (it holds {len(found)} tensors)\n"
            f"prumux needs a fine-tuned classifier, head included, of model type that "
            "config.json names"
        )
    tensor, whole = found[source.tensor], (source.of * shape[0], *shape[1:])
    if tuple(tensor.shape) != whole:
        raise ModelError(
            f"tensor '{source.tensor}' has shape {tuple(tensor.shape)}, "
            f"config.json says {whole}"
        )
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        raise ModelError(f"tensor '{source.tensor}' holds values that are not finite floats")
    return tensor[source.index * shape[0] :][: shape[0]] if source.of > 1 else tensor


def _unwrap(name: str) -> str:
    """Names as saved from DistributedDataParallel or torch.compile."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name)


def _modern(name: str) -> str:
    """TensorFlow-era LayerNorm spelling."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", _gamma, name)


def _gamma(match: re.Match[str]) -> str:
    return "LayerNorm.weight" if match[1] == "gamma" else "LayerNorm.bias"


def _ignorable(name: str) -> bool:
    """Buffers, and heads of other tasks that Hugging Face also drops."""
    return name.endswith((".position_ids", ".token_type_ids")) or ".pooler." in name
