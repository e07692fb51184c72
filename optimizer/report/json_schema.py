"""report.schema.json, generated from the dataclasses of `contents`.

    python -m prumux.optimizer.report.json_schema

This command, or `make schema`, writes the file. A test compares the file with a fresh one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib.resources import files
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from .contents import SCHEMA_VERSION, Report
from .encoding import choices, fields_of, metadata, plain
from .units import OMIT_NONE, Unit

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
HEAD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": f"urn:prumux:report:{SCHEMA_VERSION}",
    "title": "prumux report.json",
}
Schema = dict[str, Any]


def report_schema() -> Schema:
    """The JSON schema (draft 2020-12) of report.json."""
    definitions: dict[str, Schema] = {}
    top = _object(Report, definitions)
    return {**HEAD, **top, "$defs": dict(sorted(definitions.items()))}


def text() -> str:
    """The text of report.schema.json."""
    return json.dumps(report_schema(), indent=2, ensure_ascii=False) + "\n"


def _object(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """Schema of a dataclass. Other dataclasses in it are added to `definitions`."""
    listed = list(fields_of(kind))
    return {
        "type": "object",
        "description": cleandoc((get_origin(kind) or kind).__doc__ or ""),
        "additionalProperties": False,
        "required": [name for name, _, required in listed if required],
        "properties": {name: _field(hint, definitions) for name, hint, _ in listed},
    }


def _field(hint: Any, definitions: dict[str, Schema]) -> Schema:
    """Schema of a value, with the description and the unit from its type."""
    extras = metadata(hint)
    schema = _value(plain(hint), OMIT_NONE in extras, definitions)
    words = [x for x in extras if isinstance(x, str)]
    for unit in (x for x in (*_units_inside(plain(hint)), *extras) if isinstance(x, Unit)):
        words += [f"Unit: {unit.name}."] if unit.name else []
        bounds = {
            "minimum": unit.minimum,
            "maximum": unit.maximum,
            "exclusiveMinimum": unit.above,
            "exclusiveMaximum": unit.below,
        }
        if "$ref" not in schema and "anyOf" not in schema and "oneOf" not in schema:
            schema |= {k: x for k, x in bounds.items() if x is not None}
    return {**schema, "description": " ".join(words)} if words else schema


def _units_inside(hint: Any) -> list[Any]:
    """Units of the members of a union such as `Times | None`."""
    members = choices(hint)
    return [x for m in members for x in metadata(m)] if len(members) > 1 else []


def _value(hint: Any, omit_none: bool, definitions: dict[str, Schema]) -> Schema:
    members = [x for x in choices(hint) if x is not type(None)]
    nullable = len(members) < len(choices(hint)) and not omit_none
    if len(members) > 1:
        return {"anyOf": [_field(x, definitions) for x in members]}
    schema = _single(plain(members[0]), definitions)
    if not nullable:
        return schema
    if "type" not in schema:
        return {"oneOf": [{"type": "null"}, schema]}
    return {**schema, "type": [schema["type"], "null"]}


def _single(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """Schema of a type that is not a union."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(origin or kind):
        return _dataclass(kind, definitions)
    if kind is Any:
        return {}
    if origin is Literal:
        return {"const": inner[0]} if len(inner) == 1 else {"enum": list(inner)}
    if origin is tuple:
        length = (
            {} if inner[-1] is Ellipsis else {"minItems": len(inner), "maxItems": len(inner)}
        )
        return {"type": "array", "items": _field(inner[0], definitions), **length}
    if origin is Mapping:
        values = _field(inner[1], definitions)
        return {"type": "object"} | ({"additionalProperties": values} if values else {})
    return {"type": JSON_TYPES[kind]}


def _dataclass(kind: Any, definitions: dict[str, Schema]) -> Schema:
    """A reference to the dataclass's schema, or the schema itself of a generic Pair[T]."""
    if get_args(kind):
        return _object(kind, definitions)
    definitions.setdefault(kind.__name__, _object(kind, definitions))
    return {"$ref": f"#/$defs/{kind.__name__}"}


if __name__ == "__main__":
    Path(str(files("prumux").joinpath("report.schema.json"))).write_text(text(), "utf-8")
