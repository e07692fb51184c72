r"""The pipeline language: turns text into nodes, which store their position in the text.

    pipeline := pass ("," pass)*                spaces and newlines are free
    pass     := NAME ["{" option* "}"]          such as prune-heads
    option   := NAME ["=" list ("|" list)*]     a bare NAME means true; min-heads = min_heads
    list     := value ("," value)* | "()"       several values make a tuple, () the empty one
    value    := NUMBER | STRING | NAME          true, false, none are values

NUMBER is `1`, `-1`, `.4`, `1e-3`; STRING is `"..."` with the escapes \" \\ \n \r \t \uXXXX
and \UXXXXXXXX. `configurable.py` gives names and options their meaning.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, NamedTuple

from prumux.optimizer.base.errors import SpecError

from .lexer import Span, Token, error_at, shorten, tokens

LIMIT_POINTS = 10_000


class Value(NamedTuple):
    """One value. `text` is a number or name as written, or a string without escapes."""

    kind: Literal["number", "string", "name"]
    text: str
    span: Span


@dataclass(frozen=True)
class Option:
    """One option of a pass, with its alternatives.

    A bare name has no alternatives. Several alternatives make a search space.
    """

    name: str
    """The name as in Python, with `_` in place of `-`."""
    span: Span
    alternatives: tuple[tuple[Value, ...], ...] = ()


@dataclass(frozen=True)
class Node:
    """One pass or target in the text, and the whole text for messages."""

    name: str
    """The registered name, with `-` in place of `_`."""
    span: Span
    options: tuple[Option, ...] = ()
    text: str = field(default="", repr=False)

    def error(self, message: str, span: Span | None = None) -> SpecError:
        """A SpecError with carets under `span`; None = under the whole pass."""
        return error_at(message, self.text, span or self.span)


def parse(text: str) -> tuple[Node, ...]:
    """Parse a pipeline text into nodes, alternatives included.

    Raises:
        SpecError: the text is not in the language; carets mark the place.
    """
    return _Parser(text).pipeline()


def parse_one(text: str) -> Node:
    """Parse a text of exactly one name with options, such as a target.

    Raises:
        SpecError: the text is not in the language, or has several names.
    """
    nodes = parse(text)
    if len(nodes) > 1:
        raise nodes[1].error(f"one name is wanted here, not {len(nodes)}")
    return nodes[0]


def check_size(nodes: Iterable[Node]) -> None:
    """Refuse a search space of more than `LIMIT_POINTS` points.

    Raises:
        SpecError: the space is too large; the message says its size.
    """
    nodes = tuple(nodes)
    wide = [(n, o) for n in nodes for o in n.options if len(o.alternatives) > 1]
    count = math.prod(len(option.alternatives) for _, option in wide)
    if count > LIMIT_POINTS:
        # Python refuses to convert an int of thousands of digits to text.
        shown = f"{count:,}" if count < 10**15 else "over 10^15"
        node, option = wide[-1]
        raise node.error(
            f"the search space has {shown} points, the limit is {LIMIT_POINTS:,}; "
            "give fewer alternatives",
            option.span,
        )


def expand(node: Node) -> Iterator[Node]:
    """Every choice of alternatives of one node. The first option varies slowest."""
    choices = [
        [replace(option, alternatives=(x,)) for x in option.alternatives] or [option]
        for option in node.options
    ]
    for options in product(*choices):
        yield replace(node, options=options)


class _Parser:
    """A parser with one method for each rule. The language does not nest."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tokens(text)
        self.at = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self) -> Token:
        token = self.next
        self.at += 1
        return token

    def skip(self, kind: str) -> bool:
        found = self.next.kind == kind
        self.at += found
        return found

    def wrong(self, wanted: str) -> SpecError:
        token = self.next
        found = shorten(self.text[slice(*token.span)], 20)
        there = f"not {found}" if found else "but the text ends"
        return error_at(f"{wanted} is expected, {there}", self.text, token.span)

    def pipeline(self) -> tuple[Node, ...]:
        if self.next.kind == "end":
            message = "the text is empty; name at least one pass, such as slice"
            raise error_at(message, self.text, Span(0, 1))
        nodes = [self.node("a pass name")]
        while self.skip(","):
            nodes.append(self.node("a pass name after ','"))
        if self.next.kind == "|":
            raise self.wrong("',' (alternatives stand inside braces: n=1|2)")
        if self.next.kind != "end":
            raise self.wrong("',' or '{'" if not self.closed() else "','")
        return tuple(nodes)

    def closed(self) -> bool:
        return self.tokens[self.at - 1].kind == "}"

    def node(self, wanted: str) -> Node:
        if self.next.kind != "name":
            raise self.wrong(wanted)
        name = self.take()
        options: dict[str, Option] = {}
        brace = self.next
        if self.skip("{"):
            while not self.skip("}"):
                if self.next.kind == "end":
                    raise error_at(
                        f"the '{{' of {shorten(name.text)} is not closed; end it with '}}'",
                        self.text,
                        brace.span,
                    )
                self.add(options, self.option(), name.text)
        span = Span(name.span.start, self.tokens[self.at - 1].span.end)
        return Node(name.text.replace("_", "-"), span, tuple(options.values()), self.text)

    def add(self, options: dict[str, Option], option: Option, owner: str) -> None:
        if option.name in options:
            message = f"{shorten(owner)}: option '{shorten(option.name)}' is given twice"
            raise error_at(message, self.text, option.span)
        options[option.name] = option

    def option(self) -> Option:
        if self.next.kind != "name":
            raise self.wrong("an option or '}'")
        name = self.take()
        alternatives: list[tuple[Value, ...]] = []
        if self.skip("="):
            alternatives.append(self.values())
            while self.skip("|"):
                alternatives.append(self.values())
        span = Span(name.span.start, self.tokens[self.at - 1].span.end)
        return Option(name.text.replace("-", "_"), span, tuple(alternatives))

    def values(self) -> tuple[Value, ...]:
        if self.skip("empty"):
            return ()
        found = [self.value()]
        while self.next.kind == ",":
            comma = self.take()
            found.append(self.value())
            if self.next.kind == "=":
                message = "options are separated by spaces; commas make a list of values"
                raise error_at(message, self.text, comma.span)
        return tuple(found)

    def value(self) -> Value:
        token = self.next
        # One branch for each kind, because the type checker needs a literal.
        if token.kind == "number":
            return Value("number", self.take().text, token.span)
        if token.kind == "string":
            return Value("string", self.take().text, token.span)
        if token.kind == "name":
            return Value("name", self.take().text, token.span)
        raise self.wrong("a value")
