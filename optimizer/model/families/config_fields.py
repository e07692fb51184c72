"""Fields of a Hugging Face config, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.sizes import Activation, HeadKind

from .family import Config

LIMIT_BASE = 1e12
"""No base of rotary positions comes near it."""
LIMIT_LAYERS = 1000
"""Beyond this a config.json is taken for damaged, before anything of that size is made."""

_SPELLINGS: dict[str, Activation] = {
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "swish": "silu",
}
"""Other names of the same functions in transformers' `ACT2FN`."""


def size(
    config: Config, key: str, *, default: int | None = None, least: int = 1, most: int = 2**31
) -> int:
    """A whole number.

    Raises:
        ModelError: it is missing, of another type or out of range; names it and the range.
    """
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        shown = "missing" if value is None else repr(value)[:40]
        raise ModelError(
            f"config.json: {key} is {shown}, it must be a whole number from {least} to {most}"
        )
    return value


def layer_count(config: Config, key: str) -> int:
    """The number of layers."""
    return size(config, key, most=LIMIT_LAYERS)


def norm_eps(config: Config, key: str, default: float) -> float:
    """LayerNorm's epsilon.

    Raises:
        ModelError: it is not between 0 and 1.
    """
    value = config.get(key, default)
    number = isinstance(value, float | int) and not isinstance(value, bool)
    if not number or not 0 < value < 1:
        raise ModelError(f"config.json: {key} is {value!r:.40}, it must be between 0 and 1")
    return float(value)


def head_dim(hidden: int, heads: int) -> int:
    """Dimensions of a head.

    Raises:
        ModelError: heads do not divide the hidden size.
    """
    if hidden % heads:
        raise ModelError(
            f"config.json: hidden size {hidden} does not divide into {heads} heads "
            "(hidden_size or dim, num_attention_heads or n_heads)"
        )
    return hidden // heads


def activation(name: object, key: str = "hidden_act") -> Activation:
    """An activation by Hugging Face's name; `key` is where it stands.

    Raises:
        ModelError: it is not supported; lists those that are.
    """
    known = _SPELLINGS.get(str(name), str(name))
    if known not in get_args(Activation):
        supported = ", ".join(get_args(Activation))
        raise ModelError(
            f"config.json: {key}: activation '{name!s:.40}' is not supported; "
            f"supported: {supported}"
        )
    return known  # type: ignore[return-value]


def head_kind(config: Config, key: str, default: HeadKind) -> HeadKind:
    """The activation between the two maps of the head.

    Raises:
        ModelError: it is not supported; lists those that are.
    """
    name: Any = config.get(key, default)
    kinds = [x for x in get_args(HeadKind) if x != "linear"]
    if name not in kinds:
        raise ModelError(f"config.json: {key} is {name!r:.40}, supported: {', '.join(kinds)}")
    found: HeadKind = name
    return found


def flag(config: Config, key: str, *, default: bool = False) -> bool:
    """true or false.

    Raises:
        ModelError: it is something else.
    """
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ModelError(f"config.json: {key} is {value!r:.40}, it must be true or false")
    return value


def rotary_base(config: Config, default: float) -> float:
    """The base of rotary positions, as transformers 5 writes it or as 4 did.

    Raises:
        ModelError: positions are scaled, or the base is out of range.
    """
    given = config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise ModelError(
            f"config.json: rope_parameters is {given!r:.60}, it must be an object with "
            "rope_theta"
        )
    plain = given.get("rope_type", "default") == "default"
    if (
        not plain
        or given.get("partial_rotary_factor", 1.0) != 1.0
        or config.get("rope_scaling")
    ):
        raise ModelError(
            "config.json: only the default rope_type is supported, without rope_scaling and "
            "partial_rotary_factor"
        )
    return checked_base(given.get("rope_theta", config.get("rope_theta")) or default)


def checked_base(base: object, of: str = "") -> float:
    """A base of rotary positions in the range that models have; `of` names a kind of layers.

    Raises:
        ModelError: it is no number or out of range.
    """
    value: Any = base
    number = isinstance(value, float | int) and not isinstance(value, bool)
    if not number or not 1 < value < LIMIT_BASE:
        kind = f" of {of}" if of else ""
        raise ModelError(
            f"config.json: rope_theta{kind} is {value!r:.40}, it must be above 1 and below "
            f"{LIMIT_BASE:g}"
        )
    return float(value)
