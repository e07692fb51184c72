"""Base of passes and targets: a frozen dataclass whose fields are its options."""

import operator
import re
import types
from abc import ABC
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from prumux.optimizer.base.errors import SpecError

from .language import Node, Option, Value
from .lexer import RESERVED, Span, did_you_mean, shorten, show_number, show_text

_BASES: dict[object, Literal["int", "float", "bool", "text"]] = {
    int: "int",
    float: "float",
    bool: "bool",
    str: "text",
}


@dataclass(frozen=True)
class OptionHelp:
    """One option of a pass or target, as `--list-passes` prints it."""

    name: str
    type: str
    default: str | None
    """The default as pipeline text; None if the option is required."""
    help: str


@dataclass(frozen=True)
class Description:
    """One pass or target, as `--list-passes` prints it."""

    name: str
    summary: str
    options: tuple[OptionHelp, ...]


@dataclass(frozen=True)
class ConfigurableStep(ABC):
    """A frozen dataclass with a text form derived from its fields.

    Example: `Prune(sparsity=0.6)` prints as `prune{sparsity=0.6}` and parses back.

    Field types: int, float, bool, str, Literal of strings, `X | None`, `tuple[X, ...]`.
    `field(metadata={"help": "..."})` documents an option.

    A `__post_init__` may raise ValueError. `from_node` turns the error into a SpecError, with
    carets under the first option that the message names.
    """

    name: ClassVar[str]
    """The name in pipeline text, in kebab-case; the same as the entry point's name."""

    @classmethod
    def from_node(cls, node: Node) -> Self:
        """Build from parsed text.

        Raises:
            SpecError: an option is unknown or missing, has a wrong type or value, or has
                alternatives.
        """
        known = _options(cls)
        given: dict[str, object] = {}
        for option in node.options:
            if option.name not in known:
                raise _unknown(cls, node, option)
            given[option.name] = _read(cls, node, option, known[option.name].kind)
        for name, known_option in known.items():
            if known_option.required and name not in given:
                message = f"{cls.name} needs option '{name}'; write {cls.name}{{{name}=...}}"
                raise node.error(message)
        try:
            return cls(**given)
        except (ValueError, ArithmeticError) as error:
            raise node.error(f"{cls.name}: {error}", _blamed(node, str(error))) from error

    def __str__(self) -> str:
        """Pipeline text without default values; `from_node` reads it back as an equal value.

        Raises:
            SpecError: an option is inf or nan.
        """
        shown = []
        for name, option in _options(type(self)).items():
            value = getattr(self, name)
            if option.required or value != option.default:
                bare = value is True and option.kind == _FLAG
                shown.append(name if bare else f"{name}={option.kind.show(value)}")
        return self.name + (f"{{{' '.join(shown)}}}" if shown else "")

    @classmethod
    def describe(cls) -> Description:
        """The name, the first line of the docstring, and the options."""
        lines = (cls.__doc__ or "").strip().splitlines()
        options = tuple(
            OptionHelp(
                name=name,
                type=str(option.kind),
                default=None if option.required else option.kind.show(option.default),
                help=option.help,
            )
            for name, option in _options(cls).items()
        )
        return Description(cls.name, lines[0] if lines else "", options)


class _WrongError(Exception):
    """Error for a value that does not fit its option, with the value's place in the text."""

    def __init__(self, wanted: str, span: Span | None = None) -> None:
        super().__init__(wanted)
        self.span = span


@dataclass(frozen=True)
class _Kind:
    """The type of an option."""

    base: Literal["int", "float", "bool", "text", "word"]
    words: tuple[str, ...] = ()
    optional: bool = False
    many: bool = False

    def __str__(self) -> str:
        one = " or ".join(show_text(word) for word in self.words) or self.base
        text = f"list of {one}" if self.many else one
        return f"{text} or none" if self.optional else text

    def read(self, values: tuple[Value, ...]) -> object:
        if self.optional and [(v.kind, v.text) for v in values] == [("name", "none")]:
            return None
        if self.many:
            return tuple(self._scalar(value) for value in values)
        if len(values) != 1:
            raise _WrongError(f"wants {self}, not a list of {len(values)} values")
        return self._scalar(values[0])

    def _scalar(self, value: Value) -> object:
        kind, text, span = value
        wrong = _WrongError(f"wants {self}, not {_as_typed(value)}", span)
        match self.base:
            case "int" if kind == "number":
                if re.fullmatch("-?[0-9]+", text):
                    return int(text)
            case "float" if kind == "number":
                if abs(number := float(text)) < float("inf"):
                    return number
                wrong = _WrongError(f"is too large: {shorten(text)}", span)
            case "bool" if kind == "name" and text in {"true", "false"}:
                return text == "true"
            case "text" if kind == "string" or (kind == "name" and text not in RESERVED):
                return text
            case "text":
                wrong = _WrongError(f'wants text; quote it: "{shorten(text)}"', span)
            case "word" if kind != "number":
                if text in self.words:
                    return text
                wrong = _WrongError(f"{wrong}{did_you_mean(text, self.words)}", span)
        raise wrong

    def show(self, value: object) -> str:
        if isinstance(value, tuple | list):
            return ",".join(self.show(x) for x in value) or "()"
        if value is None:
            return "none"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return show_text(value)
        if self.base == "float" and isinstance(value, float | int):
            return show_number(float(value))
        return show_number(operator.index(value))  # type: ignore[arg-type]


_FLAG = _Kind("bool")


@dataclass(frozen=True)
class _Known:
    """Type, default and help text of one option."""

    kind: _Kind
    required: bool
    default: object
    help: str


def _as_typed(value: Value) -> str:
    text = shorten(value.text)
    return f'"{text}"' if value.kind == "string" else text


@cache
def _options(cls: type[ConfigurableStep]) -> dict[str, _Known]:
    hints = get_type_hints(cls)
    return {f.name: _known(cls, f, hints[f.name]) for f in fields(cls) if f.init}


def _known(cls: type[ConfigurableStep], of: Field[object], hint: object) -> _Known:
    kind = _kind(hint)
    if kind is None:
        raise TypeError(
            f"{cls.__name__}.{of.name}: an option cannot be {hint}; "
            "use int, float, bool, str, Literal of strings, X | None or tuple[X, ...]"
        )
    default = of.default if of.default_factory is MISSING else of.default_factory()
    return _Known(kind, default is MISSING, default, str(of.metadata.get("help", "")))


def _kind(hint: object) -> _Kind | None:
    """The kind of a type annotation; None if the language cannot express it."""
    origin, args = get_origin(hint), get_args(hint)
    optional = origin in (Union, types.UnionType) and len(args) == 2 and type(None) in args
    if optional:
        hint = next(arg for arg in args if arg is not type(None))
        origin, args = get_origin(hint), get_args(hint)
    many = origin is tuple and len(args) == 2 and args[1] is Ellipsis
    if many:
        hint = args[0]
        origin, args = get_origin(hint), get_args(hint)
    if origin is Literal and all(isinstance(arg, str) for arg in args):
        return _Kind("word", args, optional, many)
    base = _BASES.get(hint)
    return _Kind(base, (), optional, many) if base else None


def _unknown(cls: type[ConfigurableStep], node: Node, option: Option) -> SpecError:
    known = list(_options(cls))
    hint = did_you_mean(option.name, known)
    if not hint:
        hint = f"; it has {', '.join(known)}" if known else "; it has no options"
    return node.error(f"{cls.name} has no option '{shorten(option.name)}'{hint}", option.span)


def _read(cls: type[ConfigurableStep], node: Node, option: Option, kind: _Kind) -> object:
    label = f"{cls.name}: option '{option.name}'"
    if len(option.alternatives) > 1:
        count = len(option.alternatives)
        raise node.error(f"{label} has {count} alternatives; it takes one here", option.span)
    if not option.alternatives:
        if kind.base == "bool" and not kind.many:
            return True
        raise node.error(f"{label} wants {kind}; write {option.name}=...", option.span)
    try:
        return kind.read(option.alternatives[0])
    except _WrongError as error:
        raise node.error(f"{label} {error}", error.span or option.span) from None


def _blamed(node: Node, message: str) -> Span | None:
    """Place in the text of the first option that a message names."""
    by_name = {option.name: option.span for option in node.options}
    words = re.findall(r"\w+", message)
    return next((by_name[word] for word in words if word in by_name), None)
