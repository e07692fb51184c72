"""Pipelines: text, search spaces, and running on a tiny model."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from types import ModuleType
from typing import ClassVar, Literal, cast

import pytest
import torch

from prumux.optimizer.base.errors import GateError, PassError, SpecError, VerifyError
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder, Layer
from prumux.optimizer.model.weights import expected_shapes
from prumux.optimizer.pipeline import language as spec
from prumux.optimizer.pipeline import registry
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.pipeline import Pipeline, count_parameters
from prumux.optimizer.tasks.classification import Classification

# The toy passes consult nothing.
CTX = cast(Context, None)


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies one bias."""

    name: ClassVar[str] = "scale"
    by: float

    def __post_init__(self) -> None:
        if self.by <= 0:
            raise ValueError(f"by must be above 0, not {self.by}")

    def run(self, model: Model, ctx: Context) -> Model:
        if self.by == 1:
            return model
        weights = {
            **model.weights,
            "head.output.bias": model.weights["head.output.bias"] * self.by,
        }
        return replace(model, weights=weights, notes={"scaled_by": self.by})


@dataclass(frozen=True)
class DropFfn(Pass):
    """Removes the FFN of the last layer."""

    name: ClassVar[str] = "drop-ffn"

    def requires(self, model: Model) -> None:
        if not model.encoder.layers[-1].ffn:
            raise PassError("the last layer has no FFN; leave drop-ffn out", exit_code=2)

    def run(self, model: Model, ctx: Context) -> Model:
        layers = (*model.encoder.layers[:-1], replace(model.encoder.layers[-1], ffn=0))
        encoder = replace(model.encoder, layers=layers)
        weights = {name: model.weights[name] for name in expected_shapes(encoder)}
        return replace(model, encoder=encoder, weights=weights, masks=Masks.full(encoder))


@dataclass(frozen=True)
class Fail(Pass):
    """Goes wrong in the way it is told."""

    name: ClassVar[str] = "fail"
    how: Literal["verify", "ensures", "bug", "budget"] = "verify"

    def run(self, model: Model, ctx: Context) -> Model:
        if self.how == "bug":
            raise RuntimeError("boom")
        if self.how == "budget":
            raise GateError("too much")
        return replace(model, weights={}) if self.how == "verify" else model

    def ensures(self, before: Model, after: Model, ctx: Context) -> None:
        if self.how == "ensures":
            raise GateError("0.2 apart, 0.1 allowed")


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("toys")
    module.__dict__.update(Scale=Scale, DropFfn=DropFfn, Fail=Fail)
    monkeypatch.setitem(sys.modules, "toys", module)
    points = metadata.EntryPoints(
        metadata.EntryPoint(x.name, f"toys:{x.__name__}", "prumux.passes")
        for x in (Scale, DropFfn, Fail)
    )
    monkeypatch.setattr(metadata, "entry_points", lambda group: points.select(group=group))
    registry.forget()
    yield
    registry.forget()


@pytest.fixture
def model() -> Model:
    encoder = Encoder(
        vocab=11,
        positions=8,
        token_types=2,
        embedding=6,
        hidden=6,
        head_dim=3,
        layers=(Layer(2, 5), Layer(1, 4)),
        labels=2,
    )
    generator = torch.Generator().manual_seed(0)
    return Model(
        encoder=encoder,
        weights={
            name: torch.randn(shape, generator=generator)
            for name, shape in expected_shapes(encoder).items()
        },
        task=Classification(("no", "yes")),
        masks=Masks.full(encoder),
    )


def test_parse_and_print_are_inverse() -> None:
    text = "scale{by=0.5},drop-ffn,fail{how=bug}"
    pipeline = Pipeline.parse(text)
    assert pipeline == Pipeline((Scale(0.5), DropFfn(), Fail("bug")))
    assert str(pipeline) == text
    assert str(Pipeline.parse(" scale { by=.5 },\ndrop_ffn{},fail{how=verify}")) == (
        "scale{by=0.5},drop-ffn,fail"
    )


def test_parse_refuses_a_search_space() -> None:
    with pytest.raises(SpecError) as caught:
        Pipeline.parse("drop-ffn,scale{by=1|2|3}")
    assert str(caught.value) == (
        "scale: option 'by' has 3 alternatives, so this is a search space\n"
        "write one value, or search it: prumux-opt MODEL --passes TEXT --budget 2%,\n"
        "or in Python Pipeline.space(text)\n"
        "  drop-ffn,scale{by=1|2|3}\n"
        "                 ^^^^^^^^"
    )


def test_parse_shows_where_an_unknown_pass_stands() -> None:
    with pytest.raises(SpecError) as caught:
        Pipeline.parse("drop-ffn,scal{by=2}")
    assert str(caught.value) == (
        "no pass is called 'scal'; did you mean 'scale'?\n"
        "  known: drop-ffn, fail, scale\n"
        "  drop-ffn,scal{by=2}\n"
        "           ^^^^^^^^^^"
    )
    with pytest.raises(SpecError, match="no pass is called 'xxx") as caught:
        Pipeline.parse("x" * 50_000)
    assert max(map(len, str(caught.value).splitlines())) <= 100


def test_space_in_order_without_duplicates() -> None:
    points = Pipeline.space("scale{by=2|1|2.0},drop-ffn,fail{how=bug|verify}")
    assert [str(point) for point in points] == [
        "scale{by=2.0},drop-ffn,fail{how=bug}",
        "scale{by=2.0},drop-ffn,fail",
        "scale{by=1.0},drop-ffn,fail{how=bug}",
        "scale{by=1.0},drop-ffn,fail",
    ]
    assert Pipeline.space("drop-ffn") == (Pipeline.parse("drop-ffn"),)


def test_space_refuses_one_wrong_point_and_too_many() -> None:
    with pytest.raises(SpecError, match=r"scale: by must be above 0, not -2.0"):
        Pipeline.space("scale{by=1|-2}")
    with pytest.raises(SpecError, match="16,384 points, the limit is 10,000"):
        Pipeline.space(",".join(["scale{by=1|2}"] * 14))


def test_space_size() -> None:
    spec.check_size(spec.parse("a{x=1|2}," * 13 + "a"))
    with pytest.raises(SpecError, match="16,384 points, the limit is 10,000; give fewer"):
        spec.check_size(spec.parse("a{x=1|2}," * 14 + "a"))
    with pytest.raises(SpecError, match=r"has over 10\^15 points"):
        spec.check_size(spec.parse(",".join(["a{x=1|1|1|1}"] * 7600)))


def test_expand_varies_the_first_option_slowest() -> None:
    (node,) = spec.parse("a{x=1|2 flag y=3,4|5}")
    shown = [
        [[value.text for value in way] for o in point.options for way in o.alternatives]
        for point in spec.expand(node)
    ]
    assert shown == [
        [["1"], ["3", "4"]],
        [["1"], ["5"]],
        [["2"], ["3", "4"]],
        [["2"], ["5"]],
    ]


def test_run_writes_receipts(model: Model) -> None:
    seen: list[tuple[int, str, Model, Model]] = []
    after = Pipeline.parse("scale{by=2},scale{by=1},drop-ffn").run(
        replace(model, notes={"stale": 1}),
        CTX,
        lambda index, pass_, before, after: seen.append((index, str(pass_), before, after)),
    )
    # up 4*6+4, down 6*4+6, norm 2*6
    total, dropped = count_parameters(model), 28 + 30 + 12
    assert [
        (x.spec, x.parameters_before, x.parameters_after, x.notes) for x in after.history
    ] == [
        ("scale{by=2.0}", total, total, {"scaled_by": 2.0}),
        ("scale{by=1.0}", total, total, {}),
        ("drop-ffn", total, total - dropped, {}),
    ]
    assert all(x.seconds >= 0 for x in after.history)
    assert after.notes == {}
    assert model.history == ()
    assert [(index, text) for index, text, _, _ in seen] == [
        (0, "scale{by=2.0}"),
        (1, "scale{by=1.0}"),
        (2, "drop-ffn"),
    ]
    assert [len(before.history) for _, _, before, _ in seen] == [0, 1, 2]
    assert [len(after.history) for _, _, _, after in seen] == [1, 2, 3]
    assert seen[-1][-1] is after
    assert torch.equal(
        after.weights["head.output.bias"], model.weights["head.output.bias"] * 2
    )


def test_empty_pipeline_changes_nothing(model: Model) -> None:
    assert str(Pipeline(())) == ""
    assert Pipeline(()).run(model, CTX).weights is model.weights


@pytest.mark.parametrize(
    ("text", "message", "exit_code", "cause"),
    [
        (
            "drop-ffn,drop-ffn",
            "pass 2 (drop-ffn) failed after drop-ffn: "
            "the last layer has no FFN; leave drop-ffn out",
            2,
            PassError,
        ),
        ("fail", "pass 1 (fail) failed: the weights do not fit the sizes", 4, VerifyError),
        (
            "scale{by=0.4},fail{how=ensures}",
            "pass 2 (fail) failed after scale{by=0.4}: 0.2 apart, 0.1 allowed",
            4,
            GateError,
        ),
        ("fail{how=budget}", "pass 1 (fail) failed: too much", 4, GateError),
    ],
)
def test_run_says_which_pass_failed(
    model: Model, text: str, message: str, exit_code: int, cause: type[Exception]
) -> None:
    with pytest.raises(PassError) as caught:
        Pipeline.parse(text).run(model, CTX)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == exit_code
    assert type(caught.value.__cause__) is cause


def test_long_history_is_cut_in_the_message(model: Model) -> None:
    with pytest.raises(PassError) as caught:
        Pipeline.parse("scale{by=1}," * 20 + "fail{how=budget}").run(model, CTX)
    assert str(caught.value).startswith("pass 21 (fail) failed after ...")
    assert str(caught.value).endswith(",scale{by=1.0}: too much")
    assert len(str(caught.value)) < 130


def test_a_bug_keeps_its_type_and_says_where(model: Model) -> None:
    with pytest.raises(RuntimeError, match="boom") as caught:
        Pipeline.parse("scale{by=1},fail{how=bug}").run(model, CTX)
    assert caught.value.__notes__ == ["prumux: pass 2 (fail) failed after scale{by=1.0}"]


def test_run_refuses_a_damaged_model_and_passes_on_what_watch_raises(model: Model) -> None:
    with pytest.raises(VerifyError, match="missing"):
        Pipeline.parse("drop-ffn").run(replace(model, weights={}), CTX)

    def stop(index: int, pass_: Pass, before: Model, after: Model) -> None:
        raise GateError("time is up")

    with pytest.raises(GateError, match="time is up"):
        Pipeline.parse("drop-ffn").run(model, CTX, stop)


def test_choices_are_none_unless_a_pass_says_so(model: Model) -> None:
    assert tuple(DropFfn.choices(model)) == ()
    assert not DropFfn.preserves
