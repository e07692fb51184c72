"""Write the part of protobuf's text format that a Triton configuration needs.

Source: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


class Word(str):
    """An enumeration's value, written without quotes."""

    __slots__ = ()


def dump(fields: Mapping[str, Any], indent: str = "") -> str:
    """Write fields as text, in order. Mappings become messages; lists become repeated fields.

    Raises:
        TypeError: a value has another type.

    Example:
        >>> print(dump({"name": "prumux", "dims": [-1], "kind": Word("KIND_CPU")}), end="")
        name: "prumux"
        dims: [-1]
        kind: KIND_CPU
    """
    return "".join(_field(name, value, indent) for name, value in fields.items())


def _field(name: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{dump(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, str | bool | int):
        return f"{indent}{name}: {_scalar(value)}\n"
    if isinstance(value, Sequence) and all(isinstance(x, Mapping) for x in value):
        return "".join(_field(name, x, indent) for x in value)
    if isinstance(value, Sequence):
        return f"{indent}{name}: [{', '.join(map(_scalar, value))}]\n"
    raise TypeError(f"{name} is a {type(value).__name__}, which has no text form here")


def _scalar(value: str | bool | int) -> str:
    if isinstance(value, Word):
        return str(value)
    return json.dumps(value)
