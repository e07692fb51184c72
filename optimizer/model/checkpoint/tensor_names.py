"""Normalises tensor names of a checkpoint: removes wrappers and prefixes, updates spellings.

Training code wraps models. DistributedDataParallel and DeepSpeed put `module.` before names,
and torch.compile puts `_orig_mod.`. Lightning puts the name of the model's attribute.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prumux.optimizer.base.errors import ModelError

WRAPPERS = frozenset(
    {
        "module",
        "_orig_mod",
        "_forward_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
    }
)
"""Segments of names that frameworks add. No layer of a model has such a name."""
_ADAPTER = re.compile(
    r"^base_model\.model\.|(^|\.)(lora_\w+|base_layer|modules_to_save|ia3_l|oft_\w+|hada_\w+"
    r"|vera_\w+|prompt_encoder|original_module)(\.|$)"
)


@dataclass(frozen=True)
class Named:
    """Tensors under the names that the architecture gives them."""

    tensors: Mapping[str, Tensor]
    others: tuple[str, ...]
    """Names of tensors outside the model's prefix, say of losses or metrics."""


def refuse_adapters(names: Collection[str]) -> None:
    """Refuse PEFT adapters that are not merged into the model.

    Raises:
        ModelError: there is an adapter. The message names its first tensor and the call that
            merges the adapter.
    """
    found = sorted(x for x in names if _ADAPTER.search(x))
    if found:
        raise ModelError(
            f"the checkpoint holds a PEFT adapter that is not merged ('{found[0]:.80}')\n"
            "merge it: model = peft_model.merge_and_unload(), then "
            "model.save_pretrained('merged')"
        )


def named(found: Mapping[str, Tensor], expected: Collection[str]) -> Named:
    """Remove wrappers and the common prefix from the names of a state dict.

    Args:
        found: the state dict.
        expected: the tensor names of the architecture.

    Raises:
        ModelError: two tensors get the same name, or the file contains two whole models.
    """
    refuse_adapters(found)
    plain = _unwrapped(found, expected)
    wanted = set(expected)
    if wanted <= plain.keys():
        return Named(plain, ())
    homes: dict[str, list[str]] = {}
    for name in plain:
        for suffix in _suffixes(name):
            if suffix in wanted:
                homes.setdefault(suffix, []).append(name)
    prefix = _prefix(homes, len(wanted))
    if prefix is not None:
        inside = {x[len(prefix) :]: v for x, v in plain.items() if x.startswith(prefix)}
        return Named(inside, tuple(sorted(x for x in plain if not x.startswith(prefix))))
    if homes.keys() == wanted and all(len(x) == 1 for x in homes.values()):
        inside = {suffix: plain[names[0]] for suffix, names in homes.items()}
        used = {names[0] for names in homes.values()}
        return Named(inside, tuple(sorted(plain.keys() - used)))
    return Named(plain, ())


def _prefix(homes: Mapping[str, list[str]], count: int) -> str | None:
    """The prefix of the model's tensor names in the checkpoint, which may be "".

    This is a prefix with all expected names, or else the only prefix with some of them. The
    result is None if several prefixes have parts of the model.
    """
    prefixes = Counter(
        name[: len(name) - len(suffix)] for suffix, names in homes.items() for name in names
    )
    whole = sorted(x for x, n in prefixes.items() if n == count)
    if len(whole) > 1:
        raise ModelError(
            f"the checkpoint holds {len(whole)} whole models, '{whole[0]}' and '{whole[1]}'\n"
            f"save one: torch.save({{k.removeprefix('{whole[0]}'): v for k, v in "
            f"state_dict.items() if k.startswith('{whole[0]}')}}, 'model.pt')"
        )
    if whole:
        return whole[0]
    return next(iter(prefixes)) if len(prefixes) == 1 else None


def _suffixes(name: str) -> Iterator[str]:
    """The name, and its remainder after each dot."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _unwrapped(found: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in found.items():
        short = name if name in expected else _plain(name)
        if short in plain:
            raise ModelError(
                f"the checkpoint holds '{origin[short]}' and '{name}', which are one tensor\n"
                "save one model: torch.save(model.state_dict(), 'model.pt')"
            )
        plain[short], origin[short] = tensor, name
    return plain


def _plain(name: str) -> str:
    """A name without wrappers, with TensorFlow's `gamma` and `beta` renamed."""
    short = ".".join(x for x in name.split(".") if x not in WRAPPERS)
    return re.sub(r"(?<=[nN]orm)\.(gamma|beta)$", _modern, short)


def _modern(match: re.Match[str]) -> str:
    return ".weight" if match[1] == "gamma" else ".bias"


def values_fault(tensor: Tensor) -> str | None:
    """The reason why a tensor's values cannot be weights; None if they can."""
    if tensor.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"has type {kind}: save it in float32, float16 or bfloat16"
    if not bool(tensor.isfinite().all()):
        return "holds values that are not finite"
    return None
