"""Split pipeline text into tokens, print values as text, and mark errors in a text."""

import difflib
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from prumux.optimizer.base.errors import SpecError

LIMIT_CHARS = 100_000
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
    """Range of characters in the text; `end` is exclusive."""

    start: int
    end: int


def show_text(text: str) -> str:
    """The pipeline text of a string, quoted only if it needs quotes."""
    if _NAME.fullmatch(text) and text not in RESERVED:
        return text
    return '"' + "".join(_TO_ESCAPE.get(c) or _printable(c) for c in text) + '"'


def show_number(number: float) -> str:
    """The shortest text that is parsed as the same number.

    Raises:
        SpecError: the number is inf or nan, or an integer of over 100 digits.
    """
    if isinstance(number, int):
        # A comparison, because int refuses to print thousands of digits.
        if abs(number) >= 10**LIMIT_DIGITS:
            raise SpecError(f"an integer of over {LIMIT_DIGITS} digits has no pipeline text")
    elif not math.isfinite(number):
        raise SpecError(f"{number} has no pipeline text; give a finite number")
    return repr(number)


def shorten(text: str, limit: int = 40) -> str:
    """Shorten a text to `limit` characters and replace unprintable ones, for messages."""
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The text `; did you mean 'x'?`, or "" if no known name is similar."""
    near = difflib.get_close_matches(name[:60], list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def error_at(message: str, text: str, span: Span) -> SpecError:
    """A SpecError of at most five lines: the message, the text near `span`, and carets."""
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


class Token(NamedTuple):
    """One token and its place in the text."""

    kind: str
    """`number`, `string`, `name`, `empty`, `end`, or a mark such as `{` itself."""
    text: str
    span: Span


def tokens(text: str) -> list[Token]:
    """All tokens of a text; the last has the kind `end`.

    Raises:
        SpecError: the text has a character or word that is no token; carets mark it.
    """
    if len(text) > LIMIT_CHARS:
        message = f"the text has {len(text):,} characters, the limit is {LIMIT_CHARS:,}"
        raise error_at(message, text, Span(0, 1))
    found: list[Token] = []
    at = _skip(text, 0)
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _bad_character(text, at)
        found.append(_token(text, match))
        at = _skip(text, match.end())
    return [*found, Token("end", "", Span(at, at))]


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _token(text: str, match: re.Match[str]) -> Token:
    span, word = Span(*match.span()), match.group()
    if match.lastgroup == "string":
        return Token("string", _unquote(text, span), span)
    if match.lastgroup == "empty":
        return Token("empty", word, span)
    if match.lastgroup is None:
        return Token(word, word, span)
    if _NUMBER.fullmatch(word):
        if (size := len(word.lstrip("-"))) > LIMIT_DIGITS:
            message = f"a number has at most {LIMIT_DIGITS} characters, not {size}"
            raise error_at(message, text, span)
        return Token("number", word, span)
    if _NAME.fullmatch(word):
        return Token("name", word, span)
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
