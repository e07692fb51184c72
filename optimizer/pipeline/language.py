r"""The pipeline language: text to nodes that know where they stood, and values back to text.

    pipeline := pass ("," pass)*                spaces and newlines are free
    pass     := NAME ["{" option* "}"]          such as prune-heads
    option   := NAME ["=" list ("|" list)*]     a bare NAME means true; min-heads = min_heads
    list     := value ("," value)* | "()"       several values make a tuple, () the empty one
    value    := NUMBER | STRING | NAME          true, false, none are values

NUMBER is `1`, `-1`, `.4`, `1e-3`; STRING is `"..."` with the escapes \" \\ \n \r \t \uXXXX
and \UXXXXXXXX. `configurable.py` gives names and options their meaning.
"""

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal, NamedTuple

from prumux.optimizer.base.errors import SpecError

LIMIT_CHARS = 100_000
LIMIT_POINTS = 10_000
LIMIT_DIGITS = 100
RESERVED = frozenset({"true", "false", "none"})

_WINDOW_CHARS = 92
_LINE_CHARS = 160
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*+")|(?P<word>[A-Za-z0-9_.+-]+)|(?P<empty>\( *\))|[{}=|,]',
    re.DOTALL,
)
_ESCAPE = re.compile(r'\\(?:(["\\nrt])|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)', re.DOTALL)
_ESCAPED = {'"': '"', "\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
_TO_ESCAPE = {char: f"\\{letter}" for letter, char in _ESCAPED.items()}


class Span(NamedTuple):
    """Half-open range of characters of the text."""

    start: int
    end: int


class Value(NamedTuple):
    """One value. `text` is the number or name as typed, or the string with escapes undone."""

    kind: Literal["number", "string", "name"]
    text: str
    span: Span


@dataclass(frozen=True)
class Option:
    """One option of a pass. No alternatives = a bare name; more than one = a search space."""

    name: str
    """As a Python name: `-` is `_`."""
    span: Span
    alternatives: tuple[tuple[Value, ...], ...] = ()


@dataclass(frozen=True)
class Node:
    """One pass or target as written, and the whole text for messages."""

    name: str
    """As it is registered: `_` is `-`."""
    span: Span
    options: tuple[Option, ...] = ()
    text: str = field(default="", repr=False)

    def error(self, message: str, span: Span | None = None) -> SpecError:
        """A SpecError with carets under `span`, or under the whole pass."""
        return error_at(message, self.text, span or self.span)


def parse(text: str) -> tuple[Node, ...]:
    """Nodes of a pipeline text, alternatives included.

    Raises:
        SpecError: with the text and carets under what is wrong.
    """
    return _Parser(text).pipeline()


def parse_one(text: str) -> Node:
    """The node of a text that holds exactly one name with options, such as a target.

    Raises:
        SpecError: also where there are several.
    """
    nodes = parse(text)
    if len(nodes) > 1:
        raise nodes[1].error(f"one name is wanted here, not {len(nodes)}")
    return nodes[0]


def check_size(nodes: Iterable[Node]) -> None:
    """Refuse a search space of more than LIMIT_POINTS points.

    Raises:
        SpecError: says the count.
    """
    nodes = tuple(nodes)
    wide = [(n, o) for n in nodes for o in n.options if len(o.alternatives) > 1]
    count = math.prod(len(option.alternatives) for _, option in wide)
    if count > LIMIT_POINTS:
        # A count of thousands of digits is refused by int's own conversion to text.
        shown = f"{count:,}" if count < 10**15 else "over 10^15"
        node, option = wide[-1]
        raise node.error(
            f"the search space has {shown} points, the limit is {LIMIT_POINTS:,}; "
            "give fewer alternatives",
            option.span,
        )


def expand(node: Node) -> Iterator[Node]:
    """Every choice among the alternatives of one node, the first option varying slowest."""
    ways = [
        [replace(option, alternatives=(way,)) for way in option.alternatives] or [option]
        for option in node.options
    ]
    for options in product(*ways):
        yield replace(node, options=options)


def show_text(text: str) -> str:
    """The text of a string value: bare where it reads back as itself, else quoted."""
    if _NAME.fullmatch(text) and text not in RESERVED:
        return text
    return '"' + "".join(_TO_ESCAPE.get(c) or _printable(c) for c in text) + '"'


def show_number(number: float) -> str:
    """The shortest text that reads back as the same number.

    Raises:
        SpecError: for what the language does not have: inf, nan, over 100 digits.
    """
    if isinstance(number, int):
        # Compared, not converted: int refuses to print thousands of digits.
        if abs(number) >= 10**LIMIT_DIGITS:
            raise SpecError(f"an integer of over {LIMIT_DIGITS} digits has no pipeline text")
    elif not math.isfinite(number):
        raise SpecError(f"{number} has no pipeline text; give a finite number")
    return repr(number)


def shorten(text: str, limit: int = 40) -> str:
    """At most `limit` characters on one line, each printable, for messages."""
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name[:60], list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def error_at(message: str, text: str, span: Span) -> SpecError:
    """A SpecError of at most five lines: message, text near `span`, carets under it."""
    head = [shorten(line, _LINE_CHARS) for line in message.splitlines()[:3]]
    start, end = 0, len(text)
    if end > _WINDOW_CHARS:
        start = max(0, min(span.start - _WINDOW_CHARS // 3, end - _WINDOW_CHARS))
        end = start + _WINDOW_CHARS
    left, right = "..." if start else "", "..." if end < len(text) else ""
    line = "".join(" " if c in "\r\n\t" else c for c in text[start:end])
    carets = max(1, min(span.end, end) - span.start)
    pad = " " * (2 + len(left) + span.start - start)
    shown = shorten(line, _WINDOW_CHARS)
    return SpecError("\n".join([*head, f"  {left}{shown}{right}", pad + "^" * carets]))


def _printable(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


class _Token(NamedTuple):
    kind: str
    """number, string, name, empty, end, or the mark itself."""
    text: str
    span: Span


def _tokens(text: str) -> list[_Token]:
    if len(text) > LIMIT_CHARS:
        message = f"the text has {len(text):,} characters, the limit is {LIMIT_CHARS:,}"
        raise error_at(message, text, Span(0, 1))
    found: list[_Token] = []
    at = _skip(text, 0)
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _bad_character(text, at)
        found.append(_token(text, match))
        at = _skip(text, match.end())
    return [*found, _Token("end", "", Span(at, at))]


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _token(text: str, match: re.Match[str]) -> _Token:
    span, word = Span(*match.span()), match.group()
    if match.lastgroup == "string":
        return _Token("string", _unquote(text, span), span)
    if match.lastgroup == "empty":
        return _Token("empty", word, span)
    if match.lastgroup is None:
        return _Token(word, word, span)
    if _NUMBER.fullmatch(word):
        if (size := len(word.lstrip("-"))) > LIMIT_DIGITS:
            message = f"a number has at most {LIMIT_DIGITS} characters, not {size}"
            raise error_at(message, text, span)
        return _Token("number", word, span)
    if _NAME.fullmatch(word):
        return _Token("name", word, span)
    short = shorten(word)
    raise error_at(f"'{short}' is no number and no name; as text, quote it", text, span)


def _bad_character(text: str, at: int) -> SpecError:
    if text[at] == '"':
        rest = Span(at, len(text))
        return error_at("this string is not closed; end it with '\"'", text, rest)
    char = f"'{text[at]}'" if text[at].isprintable() else f"U+{ord(text[at]):04X}"
    message = f'{char} has no meaning here; quote what is not a plain name or number: "..."'
    return error_at(message, text, Span(at, at + 1))


def _unquote(text: str, span: Span) -> str:
    def undo(match: re.Match[str]) -> str:
        letter, short, long = match.groups()
        if letter:
            return _ESCAPED[letter]
        code = int(short or long or "110000", 16)
        if code > 0x10FFFF:
            start = span.start + 1 + match.start()
            raise error_at(
                r"no such escape; there are \" \\ \n \r \t \uXXXX \UXXXXXXXX",
                text,
                Span(start, start + len(match.group())),
            )
        return chr(code)

    return _ESCAPE.sub(undo, text[span.start + 1 : span.end - 1])


class _Parser:
    """Recursive descent without recursion: the language does not nest."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.at = 0

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
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
        ways: list[tuple[Value, ...]] = []
        if self.skip("="):
            ways.append(self.values())
            while self.skip("|"):
                ways.append(self.values())
        span = Span(name.span.start, self.tokens[self.at - 1].span.end)
        return Option(name.text.replace("-", "_"), span, tuple(ways))

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
        # Spelt out one by one, so that the type checker sees the literal.
        if token.kind == "number":
            return Value("number", self.take().text, token.span)
        if token.kind == "string":
            return Value("string", self.take().text, token.span)
        if token.kind == "name":
            return Value("name", self.take().text, token.span)
        raise self.wrong("a value")
