"""Convert dataclasses to JSON values and back, by their type hints.

report = report_of(json.loads(text), "report.json")
text = json.dumps(to_json(report))
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from prumux.optimizer.base.errors import UsageError

from .contents import Report
from .units import OMIT_NONE

T = TypeVar("T")
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def to_json(value: Any) -> Any:
    """Convert a value to dicts, lists, numbers and texts for `json.dumps`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            name: to_json(getattr(value, name))
            for name, hint, _ in fields_of(type(value))
            if not (OMIT_NONE in metadata(hint) and getattr(value, name) is None)
        }
    if isinstance(value, Mapping):
        return {name: to_json(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(x) for x in value]
    return value


def report_of(value: Any, name: str) -> Report:
    """Read a report from the JSON values of the file `name`.

    Raises:
        UsageError: the values are no report; the message names the field.
    """
    try:
        return from_json(Report, value)
    except ValueError as error:
        raise UsageError(f"'{name}' is no report: {error}") from error


def from_json(kind: type[T], value: Any) -> T:
    """Read a dataclass `kind` from JSON values. Unknown names in the values are ignored.

    Raises:
        ValueError: a field is missing or has another type. The message names the field, such
            as `speed.dense`.
    """
    found: T = _read(kind, value, "")
    return found


def fields_of(kind: Any) -> Iterator[tuple[str, Any, bool]]:
    """For each field of a dataclass: the name, the type hint, and True if it is required.

    `kind` may be generic. In `Pair[Bytes]`, for example, the hints of both fields are `Bytes`.
    """
    origin = get_origin(kind) or kind
    hints = get_type_hints(origin, include_extras=True)
    for field in fields(origin):
        hint = hints[field.name]
        if get_args(kind) and hasattr(hint, "__parameters__") and hint.__parameters__:
            hint = hint[get_args(kind)]
        yield field.name, hint, field.default is MISSING


def metadata(hint: Any) -> tuple[Any, ...]:
    """The metadata of an `Annotated` type."""
    return tuple(hint.__metadata__) if get_origin(hint) is Annotated else ()


def plain(hint: Any) -> Any:
    """The type without `Annotated`."""
    return hint.__origin__ if get_origin(hint) is Annotated else hint


def choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union; for another type, only the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _read(hint: Any, value: Any, path: str) -> Any:
    """Read a JSON value as the type of a hint."""
    kind = plain(hint)
    origin = get_origin(kind) or kind
    if is_dataclass(origin):
        return _read_fields(kind, value, path)
    if len(choices(kind)) > 1:
        return _read_union(choices(kind), value, path)
    if origin in READERS:
        return READERS[origin](get_args(kind), value, path)
    allowed = (int, float) if kind is float else kind
    good = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    _check(good, value, path, NAMES[kind])
    return float(value) if kind is float else value


def _read_fields(kind: Any, value: Any, path: str) -> Any:
    _check(isinstance(value, dict), value, path, "an object")
    found = {}
    for name, hint, required in fields_of(kind):
        inner_path = f"{path}.{name}".removeprefix(".")
        if name in value:
            found[name] = _read(hint, value[name], inner_path)
        elif required:
            raise ValueError(f"{inner_path} is missing")
    return (get_origin(kind) or kind)(**found)


def _read_union(members: tuple[Any, ...], value: Any, path: str) -> Any:
    """Read a JSON value as the first member of a union that it fits."""
    if value is None and type(None) in members:
        return None
    *others, last = [x for x in members if x is not type(None)]
    for member in others:
        try:
            return _read(member, value, path)
        except ValueError:
            continue
    return _read(last, value, path)


def _read_literal(inner: tuple[Any, ...], value: Any, path: str) -> Any:
    _check(value in inner, value, path, " or ".join(map(repr, inner)))
    return value


def _read_tuple(inner: tuple[Any, ...], value: Any, path: str) -> Any:
    _check(isinstance(value, list), value, path, "a list")
    kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
    _check(len(value) == len(kinds), value, path, f"a list of {len(kinds)}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_read(kind, x, f"{path}[{i}]") for i, (kind, x) in pairs)


def _read_mapping(inner: tuple[Any, ...], value: Any, path: str) -> Any:
    _check(isinstance(value, dict), value, path, "an object")
    return {k: _read(inner[1], x, f"{path}.{k}") for k, x in value.items()}


READERS: dict[Any, Callable[[tuple[Any, ...], Any, str], Any]] = {
    Any: lambda inner, value, path: value,
    Literal: _read_literal,
    tuple: _read_tuple,
    Mapping: _read_mapping,
}


def _check(good: bool, value: Any, path: str, wanted: str) -> None:
    if not good:
        raise ValueError(f"{path or 'the file'} is {value!r:.60}, not {wanted}")
