"""Reads and checks fields of a Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.sizes import Activation, HeadKind

from .family import Config

LIMIT_BASE = 1e12
"""Upper bound of rotary bases, far above any real one."""
LIMIT_LAYERS = 1000
"""A config.json with more layers counts as damaged, before memory is allocated for them."""

_SPELLINGS: dict[str, Activation] = {
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "swish": "silu",
}
"""Other names of activations in transformers' `ACT2FN`."""


def size(
    config: Config, key: str, *, default: int | None = None, least: int = 1, most: int = 2**31
) -> int:
    """Read a whole number.

    Raises:
        ModelError: the field is missing, out of range or of another type. The message names
            the field and the range.
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
    """Read the number of layers."""
    return size(config, key, most=LIMIT_LAYERS)


def norm_eps(config: Config, key: str, default: float) -> float:
    """Read the epsilon of LayerNorm.

    Raises:
        ModelError: the epsilon is not between 0 and 1.
    """
    value = config.get(key, default)
    number = isinstance(value, float | int) and not isinstance(value, bool)
    if not number or not 0 < value < 1:
        raise ModelError(f"config.json: {key} is {value!r:.40}, it must be between 0 and 1")
    return float(value)


def head_dim(hidden: int, heads: int) -> int:
    """Compute the number of dimensions of a head.

    Raises:
        ModelError: the hidden size is not a multiple of the number of heads.
    """
    if hidden % heads:
        raise ModelError(
            f"config.json: hidden size {hidden} does not divide into {heads} heads "
            "(hidden_size or dim, num_attention_heads or n_heads)"
        )
    return hidden // heads


def activation(name: object, key: str = "hidden_act") -> Activation:
    """The activation with this Hugging Face name. `key` is its field, for messages.

    Raises:
        ModelError: the activation is not supported. The message lists the supported ones.
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
    """Read the activation between the head's two linear maps.

    Raises:
        ModelError: the activation is not supported. The message lists the supported ones.
    """
    name: Any = config.get(key, default)
    kinds = [x for x in get_args(HeadKind) if x != "linear"]
    if name not in kinds:
        raise ModelError(f"config.json: {key} is {name!r:.40}, supported: {', '.join(kinds)}")
    found: HeadKind = name
    return found


def flag(config: Config, key: str, *, default: bool = False) -> bool:
    """Read a field that is true or false.

    Raises:
        ModelError: the field has another value.
    """
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ModelError(f"config.json: {key} is {value!r:.40}, it must be true or false")
    return value


def rotary_base(config: Config, default: float) -> float:
    """Read the base of rotary positions, in the form of transformers 5 or of transformers 4.

    Raises:
        ModelError: the config scales positions, or the base is out of range.
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
    """Check a base of rotary positions. `of` names the kind of layers, for messages.

    Raises:
        ModelError: the base is not a number, or is out of range.
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
