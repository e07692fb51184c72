"""The pipeline language and the typed options: print, parse, and every message."""

import math
import random
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.base.errors import SpecError
from prumux.optimizer.pipeline import language as spec
from prumux.optimizer.pipeline import lexer
from prumux.optimizer.pipeline.configurable import ConfigurableStep, Description, OptionHelp


@dataclass(frozen=True)
class Heads(ConfigurableStep):
    """Removes heads.

    Not in the summary.
    """

    name: ClassVar[str] = "prune-heads"
    ratio: float = field(default=0.4, metadata={"help": "share to remove"})
    min_heads: int = 1
    keep_first: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), not {self.ratio}")


@dataclass(frozen=True)
class Join(ConfigurableStep):
    """Mixes rows."""

    name: ClassVar[str] = "mux"
    n: int
    demux: Literal["mlp", "none", "two words"] = "mlp"
    at: tuple[int, ...] = ()
    scale: float | None = None


@dataclass(frozen=True)
class Zoo(ConfigurableStep):
    name: ClassVar[str] = "zoo"
    an_int: int = 0
    a_float: float = 1.0
    flag: bool = True
    text: str = ""
    word: Literal["none", "erf", "8", "a b"] = "erf"
    maybe_int: int | None = 3
    maybe_float: float | None = None
    maybe_flag: bool | None = False
    maybe_text: str | None = "none"
    maybe_word: Literal["none", "x"] | None = None
    ints: tuple[int, ...] = (1, 2)
    floats: tuple[float, ...] = ()
    flags: tuple[bool, ...] = (True,)
    texts: tuple[str, ...] = ("a",)
    words: tuple[Literal["true", "x"], ...] = ()
    maybe_texts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Plain(ConfigurableStep):
    name: ClassVar[str] = "plain"


CLASSES: dict[str, type[ConfigurableStep]] = {c.name: c for c in (Heads, Join, Zoo, Plain)}


def build(text: str) -> tuple[ConfigurableStep, ...]:
    stages = []
    for node in spec.parse(text):
        if node.name not in CLASSES:
            raise node.error("unknown")
        stages.append(CLASSES[node.name].from_node(node))
    return tuple(stages)


def show(stages: tuple[ConfigurableStep, ...]) -> str:
    return ",".join(str(stage) for stage in stages)


GOOD: list[tuple[str, ConfigurableStep]] = [
    ("prune-heads", Heads()),
    ("prune_heads{}", Heads()),
    ("prune-heads{ratio=.5}", Heads(0.5)),
    ("prune-heads{ratio=0}", Heads(0.0)),
    ("prune-heads{ratio=1e-3 min-heads=2 keep-first}", Heads(1e-3, 2, True)),
    ("prune-heads{min_heads=-1 keep_first=true}", Heads(min_heads=-1, keep_first=True)),
    (" \n prune-heads { ratio = 1e-05\n\tmin_heads=2 } ", Heads(1e-05, 2)),
    ("mux{n=4 demux=none}", Join(4, "none")),
    ('mux{n=4 demux="two words" at=3}', Join(4, "two words", (3,))),
    ("mux{at=1, 2 n=3 scale=none}", Join(3, at=(1, 2))),
    ("mux{n=3 at=() scale=2}", Join(3, scale=2.0)),
    ("zoo{maybe_word=none}", Zoo()),
    ('zoo{maybe_word="none" maybe-text=none}', Zoo(maybe_text=None, maybe_word="none")),
    (r'zoo{text="\"\\\n\t\r\u00e9\U0001f600\ud800"}', Zoo(text='"\\\n\t\ré😀\ud800')),
    ('zoo{text="a,b{c}|d=e\n" texts="x y",z}', Zoo(text="a,b{c}|d=e\n", texts=("x y", "z"))),
    ("zoo{texts=() ints=7 flag=false}", Zoo(flag=False, ints=(7,), texts=())),
    ("zoo{maybe_texts=() words=true}", Zoo(maybe_texts=(), words=("true",))),
]


@pytest.mark.parametrize(("text", "stage"), GOOD, ids=[text for text, _ in GOOD])
def test_reads(text: str, stage: ConfigurableStep) -> None:
    assert build(text) == (stage,)
    assert build(str(stage)) == (stage,)


PRINTED: list[tuple[ConfigurableStep, str]] = [
    (Heads(), "prune-heads"),
    (Heads(0.25, 1, True), "prune-heads{ratio=0.25 keep_first}"),
    (Heads(0), "prune-heads{ratio=0.0}"),
    (Heads(1e-05), "prune-heads{ratio=1e-05}"),
    (Join(4, "none", (3,)), 'mux{n=4 demux="none" at=3}'),
    (Join(2, "two words", (1, 2), 0.5), 'mux{n=2 demux="two words" at=1,2 scale=0.5}'),
    (Zoo(floats=(1, 2.5), ints=()), "zoo{ints=() floats=1.0,2.5}"),
    (Zoo(text="a\x00\u2028é"), r'zoo{text="a\u0000\u2028é"}'),
    (Zoo(flag=False, maybe_flag=True), "zoo{flag=false maybe_flag=true}"),
]


@pytest.mark.parametrize(("stage", "text"), PRINTED, ids=[text for _, text in PRINTED])
def test_prints(stage: ConfigurableStep, text: str) -> None:
    assert str(stage) == text


def test_the_example_of_the_manual() -> None:
    with pytest.raises(SpecError) as caught:
        build("prune-heads{ratio=0.4},mux{n=4 demix=mlp}")
    assert str(caught.value) == (
        "mux has no option 'demix'; did you mean 'demux'?\n"
        "  prune-heads{ratio=0.4},mux{n=4 demix=mlp}\n"
        "                                 ^^^^^^^^^"
    )


BAD: list[tuple[str, str, str]] = [
    # text, what the message says, what the carets stand under ("" = past the end)
    ("", "the text is empty; name at least one pass", ""),
    (" \n ", "the text is empty", " "),
    ("plain,", "a pass name after ',' is expected, but the text ends", ""),
    (",plain", "a pass name is expected, not ,", ","),
    ("plain,,plain", "a pass name after ',' is expected, not ,", ","),
    ("plain plain", "',' or '{' is expected, not plain", "plain"),
    ("plain{} plain", "',' is expected, not plain", "plain"),
    ("plain|plain", "alternatives stand inside braces: n=1|2", "|"),
    ("plain}", "',' or '{' is expected, not }", "}"),
    ("mux{n=4", "the '{' of mux is not closed; end it with '}'", "{"),
    ("mux{n=4,}", "a value is expected, not }", "}"),
    ("mux{n=}", "a value is expected, not }", "}"),
    ("mux{n=1|}", "a value is expected, not }", "}"),
    ("mux{n=4 =3}", "an option or '}' is expected, not =", "="),
    ("mux{4}", "an option or '}' is expected, not 4", "4"),
    ("mux{n=4, demux=mlp}", "options are separated by spaces; commas make a list", ","),
    ("mux{n=4 n=5}", "mux: option 'n' is given twice", "n=5"),
    ("prune-heads{min-heads=1 min_heads=2}", "'min_heads' is given twice", "min_heads=2"),
    ('zoo{text="abc}', "this string is not closed", '"abc}'),
    ('zoo{text="a\\"}', "this string is not closed", '"a\\"}'),
    (r'zoo{text="a\qb"}', "no such escape; there are", r"\q"),
    (r'zoo{text="\U00110000"}', "no such escape", r"\U00110000"),
    ("mux{n=4%}", "'%' has no meaning here; quote what is not a plain name", "%"),
    ("mux{n=\x00}", "U+0000 has no meaning here", "?"),
    ("mux{n=4\u00a0}", "U+00A0 has no meaning here", "?"),
    ("mux{n=٣}", "'٣' has no meaning here", "٣"),
    ("mux{n=4x}", "'4x' is no number and no name; as text, quote it", "4x"),
    ("mux{n=" + "9" * 101 + "}", "a number has at most 100 characters, not 101", "9" * 86),
    ("mux{n=2.0}", "mux: option 'n' wants int, not 2.0", "2.0"),
    ("mux{n=1e3}", "mux: option 'n' wants int, not 1e3", "1e3"),
    ("mux{n=x}", "mux: option 'n' wants int, not x", "x"),
    ('mux{n="4"}', "mux: option 'n' wants int, not \"4\"", '"4"'),
    ("mux{n=none}", "mux: option 'n' wants int, not none", "none"),
    ("mux{n=1,2}", "mux: option 'n' wants int, not a list of 2 values", "n=1,2"),
    ("mux{n=()}", "mux: option 'n' wants int, not a list of 0 values", "n=()"),
    ("mux{n}", "mux: option 'n' wants int; write n=...", "n"),
    ("mux{n=2 at=1,x}", "mux: option 'at' wants list of int, not x", "x"),
    ("mux{n=2 scale=x}", "mux: option 'scale' wants float or none, not x", "x"),
    ("mux{n=2 scale=1e999}", "mux: option 'scale' is too large: 1e999", "1e999"),
    ("mux{n=2 scale=nan}", "mux: option 'scale' wants float or none, not nan", "nan"),
    ("mux{n=2 scale=-inf}", "'-inf' is no number and no name", "-inf"),
    ("mux{n=2 demux=mpl}", "not mpl; did you mean 'mlp'?", "mpl"),
    ("mux{n=2 demux=4}", 'wants mlp or "none" or "two words", not 4', "4"),
    ("prune-heads{keep_first=1}", "option 'keep_first' wants bool, not 1", "1"),
    ("zoo{text=true}", "zoo: option 'text' wants text; quote it: \"true\"", "true"),
    ("zoo{text=5}", 'wants text; quote it: "5"', "5"),
    ("zoo{flags}", "zoo: option 'flags' wants list of bool; write flags=...", "flags"),
    ("mux{demux=mlp}", "mux needs option 'n'; write mux{n=...}", "mux{demux=mlp}"),
    ("mux{n=1|2}", "mux: option 'n' has 2 alternatives; it takes one here", "n=1|2"),
    ("plain{zzz=1}", "plain has no option 'zzz'; it has no options", "zzz=1"),
    ("mux{zzz=1}", "mux has no option 'zzz'; it has n, demux, at, scale", "zzz=1"),
    ("prune-heads{ratio=1.4 min_heads=2}", "heads: ratio must be in [0, 1)", "ratio=1.4"),
]


@pytest.mark.parametrize(("text", "message", "under"), BAD, ids=[repr(x[0])[:40] for x in BAD])
def test_refuses(text: str, message: str, under: str) -> None:
    with pytest.raises(SpecError) as caught:
        build(text)
    said = str(caught.value)
    assert message in said.splitlines()[0]
    check_shape(said)
    shown, carets = said.splitlines()[-2:]
    at, size = carets.index("^"), carets.count("^")
    assert shown[at : at + size] == under
    assert size == max(1, len(under))


def check_shape(said: str) -> None:
    lines = said.splitlines()
    assert 3 <= len(lines) <= 5, said
    assert all(len(line) <= 160 for line in lines)
    assert all(len(line) <= 100 for line in lines[-2:])
    assert set(lines[-1]) <= {" ", "^"}
    assert said.replace("\n", "").isprintable()


def test_long_and_multiline_text_shows_a_window() -> None:
    text = ",\n".join(["prune-heads{ratio=0.5}"] * 50 + ["mux{n=4 demix=1}"] + ["plain"] * 90)
    with pytest.raises(SpecError, match="did you mean 'demux'") as caught:
        build(text)
    check_shape(str(caught.value))
    shown, carets = str(caught.value).splitlines()[-2:]
    assert shown.startswith("  ...")
    assert shown.endswith("...")
    assert shown[carets.index("^") : len(carets)] == "demix=1"


def test_long_message_is_cut() -> None:
    error = lexer.error_at(
        "\n".join(["x" * 999 + "\x00"] * 9), "y" * 999, lexer.Span(998, 999)
    )
    check_shape(str(error))


def test_refuses_too_much() -> None:
    with pytest.raises(SpecError, match=r"100,001 characters, the limit is 100,000"):
        build("x" * 100_001)
    build("plain" + " " * 99_995)
    with pytest.raises(SpecError, match=r"mux\{n=4\}") as caught:
        spec.parse_one("plain,mux{n=4}")
    assert "one name is wanted here, not 2" in str(caught.value)
    assert spec.parse_one("mux{n=4}").name == "mux"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_not_finite_has_no_text(value: float) -> None:
    with pytest.raises(SpecError, match="has no pipeline text; give a finite number"):
        str(Zoo(a_float=value))


def test_huge_integer_has_no_text() -> None:
    assert build(str(Zoo(10**100 - 1))) == (Zoo(10**100 - 1),)
    assert build(str(Zoo(1 - 10**100))) == (Zoo(1 - 10**100),)
    with pytest.raises(SpecError, match="over 100 digits has no pipeline text"):
        str(Zoo(10**9999))


def test_unsupported_field_type() -> None:
    @dataclass(frozen=True)
    class Odd(ConfigurableStep):
        name: ClassVar[str] = "odd"
        x: int | str = 1

    with pytest.raises(TypeError, match=r"Odd.x: an option cannot be int \| str"):
        Odd.describe()


def test_describe() -> None:
    assert Heads.describe() == Description(
        "prune-heads",
        "Removes heads.",
        (
            OptionHelp("ratio", "float", "0.4", "share to remove"),
            OptionHelp("min_heads", "int", "1", ""),
            OptionHelp("keep_first", "bool", "false", ""),
        ),
    )
    n, demux, at, scale = Join.describe().options
    assert (n.default, demux.default, at.default, scale.default) == (None, "mlp", "()", "none")
    assert demux.type == 'mlp or "none" or "two words"'
    assert (at.type, scale.type) == ("list of int", "float or none")


# ---- random values and junk

ALPHABET = "abz_-019 .,{}=|\"'\\\n\t\x00é٣\u00a0😀\ud800()%+eE"


class Maker:
    """Random instances, from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        pick = self.random.random()
        if pick < 0.3:
            return self.random.choice(["none", "true", "a-b", "_", "", "5", "1e-3"])
        return "".join(self.random.choices(ALPHABET, k=self.random.randrange(9)))

    def integer(self) -> int:
        return self.random.choice([0, 1, -1, self.random.randrange(-(10**20), 10**20)])

    def real(self) -> float:
        r = self.random
        small = r.uniform(-1, 1) * 10.0 ** r.randrange(-320, 300)
        return r.choice([0.0, 1e-05, 0.4, 5e-324, 1e308, 1e22, small, r.random()])

    def flag(self) -> bool:
        return self.random.random() < 0.5

    def zoo(self) -> Zoo:
        r = self.random
        count = r.randrange(4)
        return Zoo(
            an_int=self.integer(),
            a_float=self.real(),
            flag=self.flag(),
            text=self.text(),
            word=r.choice(["none", "erf", "8", "a b"]),
            maybe_int=r.choice([None, self.integer()]),
            maybe_float=r.choice([None, self.real()]),
            maybe_flag=r.choice([None, True, False]),
            maybe_text=r.choice([None, self.text()]),
            maybe_word=r.choice([None, "none", "x"]),
            ints=tuple(self.integer() for _ in range(count)),
            floats=tuple(self.real() for _ in range(count)),
            flags=tuple(self.flag() for _ in range(count)),
            texts=tuple(self.text() for _ in range(count)),
            words=tuple(r.choice(["true", "x"]) for _ in range(count)),
            maybe_texts=r.choice([None, tuple(self.text() for _ in range(count))]),
        )

    def stage(self) -> ConfigurableStep:
        r = self.random
        heads = Heads(r.random(), self.integer(), self.flag())
        join = Join(self.integer(), "none", (self.integer(),) * r.randrange(3))
        return r.choice([heads, join, Plain(), self.zoo()])

    def pipeline(self) -> tuple[ConfigurableStep, ...]:
        return tuple(self.stage() for _ in range(self.random.randrange(1, 4)))

    def mutated(self) -> str:
        text = show(self.pipeline())[: self.random.choice([20, 60, 9999])]
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(text) + 1)
            cut = at + self.random.choice([0, 1, 1, 5])
            text = text[:at] + self.random.choice(["", *ALPHABET, "none", "a=1"]) + text[cut:]
        return text


def test_ten_thousand_pipelines_round_trip() -> None:
    maker = Maker(0)
    for _ in range(10_000):
        stages = maker.pipeline()
        text = show(stages)
        again = build(text)
        assert again == stages
        assert show(again) == text
        assert text.replace("\n", "").isprintable()


def test_ten_thousand_junk_texts_give_spec_errors_only() -> None:
    maker = Maker(1)
    refused = 0
    for i in range(10_000):
        junk = "".join(maker.random.choices(ALPHABET, k=maker.random.randrange(30)))
        text = maker.mutated() if i % 2 else junk
        try:
            stages = build(text)
        except SpecError as error:
            refused += 1
            check_shape(str(error))
        else:
            assert build(show(stages)) == stages
    assert refused > 5_000


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for candidate in (text, f"zoo{{text={text}}}", f'zoo{{text="{text}"}}'):
        try:
            stages = build(candidate)
        except SpecError as error:
            check_shape(str(error))
        else:
            assert build(show(stages)) == stages


@settings(max_examples=500, deadline=None)
@given(
    st.text(st.characters()), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
)
def test_any_value_round_trips(text: str, integer: int, real: float) -> None:
    stage = Zoo(integer, real, text=text, texts=(text,), maybe_text=text, floats=(real, real))
    assert build(str(stage)) == (stage,)
