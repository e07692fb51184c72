"""The TensorRT target as far as it goes without TensorRT: shapes, script, gates, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from prumux.export.graph.qdq import quantized
from prumux.export.tensorrt import TensorRt
from prumux.export.trt import library as trt_library
from prumux.export.trt.engine import open_plan
from prumux.export.trt.plan_facts import read_facts
from prumux.export.trt.profiles import Profile, nearest, profiles
from prumux.export.trt.trtexec import trtexec_script
from prumux.export.trt.types_check import TypeReport, check_types, seen_in
from prumux.optimizer.base.errors import (
    GateError,
    MissingError,
    ModelError,
    SpecError,
    UsageError,
)
from prumux.optimizer.cli.opt import main
from prumux.optimizer.pipeline.registry import parse_target
from tests.helpers.factory import make_context, multiplexed, random_batch, random_model


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TensorRT, even where it is."""
    for flavor in trt_library.FLAVORS:
        monkeypatch.setitem(sys.modules, flavor.module, None)


def test_profiles_follow_the_workload() -> None:
    model = random_model()
    work = [random_batch(model, 32, length) for length in (6, 11, 30)]
    found = profiles(model.encoder, work)
    assert found == (
        Profile((1, 32, 32), (1, 16, 16)),
        Profile((1, 32, 32), (1, 32, 40)),
        Profile((1, 1, 1), (1, 16, 40)),
    )
    assert nearest(found, 32, 11) == 0
    assert nearest(found, 32, 17) == 1
    assert nearest(found, 1, 40) == 2
    assert nearest(found, 33, 8) is None
    assert nearest(found, 8, 41) is None
    one = profiles(model.encoder, work[:1])
    assert one == (Profile((1, 32, 32), (1, 8, 40)), Profile((1, 1, 1), (1, 8, 40)))
    assert profiles(model.encoder, [random_batch(model, 1, 40)]) == (
        Profile((1, 1, 1), (1, 40, 40)),
    )


@pytest.mark.parametrize("rows", [1, 3, 4, 32])
def test_profiles_hold_whole_groups(rows: int) -> None:
    model = multiplexed(random_model("roberta", heads=(4, 4)), n=3)
    for profile in profiles(model.encoder, [random_batch(model, rows, 9)]):
        assert all(x % 3 == 0 for x in profile.rows)
        assert profile.rows[0] == 3
        assert profile.tokens[2] <= model.encoder.most_tokens == 38
    top = profiles(model.encoder, [random_batch(model, rows, 9)])[0].rows[2]
    assert top == -(-rows // 3) * 3


def test_the_script_is_the_exact_line(tmp_path: Path) -> None:
    model = random_model("distilbert", heads=(4,))
    work = [random_batch(model, 4, 12)]
    text = trtexec_script(model.encoder, work, workspace_mib=512, opt_level=4)
    (tmp_path / "tensorrt.sh").write_text(text)
    (tmp_path / "trtexec").write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$@"\n')
    (tmp_path / "trtexec").chmod(0o755)
    done = subprocess.run(
        ["sh", str(tmp_path / "tensorrt.sh"), "--verbose"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        str(tmp_path.resolve()),
        "--onnx=model.onnx",
        "--saveEngine=model.plan",
        "--stronglyTyped",
        "--profile=0",
        "--minShapes=input_ids:1x1,attention_mask:1x1",
        "--optShapes=input_ids:4x16,attention_mask:4x16",
        "--maxShapes=input_ids:4x40,attention_mask:4x40",
        "--profile=1",
        "--minShapes=input_ids:1x1,attention_mask:1x1",
        "--optShapes=input_ids:1x16,attention_mask:1x16",
        "--maxShapes=input_ids:1x40,attention_mask:1x40",
        "--timingCacheFile=timing.cache",
        "--builderOptimizationLevel=4",
        "--memPoolSize=workspace:512",
        "--noTF32",
        "--profilingVerbosity=detailed",
        "--skipInference",
        "--verbose",
    ]


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32", "int8"])
def test_without_tensorrt_the_graph_and_the_script_are_left(
    precision: Any, tmp_path: Path
) -> None:
    model = multiplexed(random_model("roberta", heads=(3, 0, 4), ffn=(5, 6, 0)), n=2, at=1)
    with pytest.raises(MissingError) as caught:
        TensorRt(precision).emit(model, make_context(model), tmp_path)
    assert caught.value.exit_code == 5
    assert "pip install 'prumux[tensorrt]'" in str(caught.value)
    assert "holds model.onnx and tensorrt.sh" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert sorted(x.name for x in tmp_path.iterdir()) == ["model.onnx", "tensorrt.sh"]
    proto = onnx.load(tmp_path / "model.onnx")
    assert bool(quantized(proto)) == (precision == "int8")
    kinds = {x.data_type for x in proto.graph.initializer}
    low = {"fp16": 10, "bf16": 16, "fp32": 1, "int8": 10}[precision]
    assert low in kinds


@pytest.mark.usefixtures("nothing")
def test_the_command_says_at_once_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["no-such-model", "--budget", "2%", "--target", "tensorrt"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "TensorRT is not installed" in said
    assert "pip install 'prumux[tensorrt]'" in said
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old: Any = SimpleNamespace(__version__="10.9.0.34")
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(MissingError, match=r"TensorRT 10\.9\.0\.34 is here, 10\.13 or newer"):
        TensorRt().check()
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.1.2"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingError, match="needs an NVIDIA GPU, and torch sees none"):
        TensorRt().check()
    with pytest.raises(MissingError, match="torch sees none"):
        open_plan(tmp_path / "model.plan")


def test_names_to_keep_are_looked_for_beforehand() -> None:
    model = random_model(heads=(4, 4))
    TensorRt("int8", keep=("layers.1.ffn.down",)).check_model(model)
    with pytest.raises(UsageError, match=r"has no 'layers\.9\.x' that int8 would lower"):
        TensorRt("int8", keep=("layers.1.ffn.down", "layers.9.x")).check_model(model)


def test_int8_spares_the_same_maps_in_every_candidate() -> None:
    model = random_model(heads=(4, 4))
    ctx = make_context(model)
    tuned = TensorRt("int8", flavor="rtx").tuned(model, ctx)
    assert tuned.keep
    assert (tuned.spare, tuned.flavor) == (0, "rtx")
    assert parse_target(str(tuned)) == tuned
    assert tuned.tuned(model, ctx) == tuned
    others: tuple[Any, ...] = ("fp16", "bf16", "fp32")
    assert [TensorRt(x).tuned(model, ctx) for x in others] == [TensorRt(x) for x in others]
    wanted = quantized(TensorRt("int8").types.graph(model, ctx))
    scored = tuned.draft()
    assert isinstance(scored, TensorRt)
    assert quantized(tuned.types.graph(model, ctx)) == wanted
    assert quantized(scored.types.graph(model, ctx)) == wanted
    assert len(wanted) < len(quantized(TensorRt("int8", spare=0).types.graph(model, ctx)))


def test_the_text_form() -> None:
    assert str(TensorRt()) == "tensorrt"
    two = TensorRt(flavor="rtx", capabilities=("sm80", "sm89"))
    assert str(two) == "tensorrt{flavor=rtx capabilities=sm80,sm89}"
    assert parse_target(str(two)) == two
    text = 'tensorrt{precision=int8 workspace_mib=512 opt_level=5 keep="head.dense"}'
    assert parse_target(text) == TensorRt("int8", 512, 5, ("head.dense",))
    assert parse_target(str(parse_target(text))) == parse_target(text)
    for wrong, said in (
        ("opt_level=6", "opt_level must be 0..5, not 6"),
        ("workspace_mib=0", "workspace_mib must be at least 1"),
        ("workspace_mib=99999999999999999999", r"at most 1048576 \(1 TiB\), not 99999999999"),
        ("spare=1.5", "spare must be 0..1, not 1.5"),
        ("tolerance=0", "tolerance must be above 0"),
        ('keep="head.dense"', "keep is for precision=int8, not fp16"),
        ("precision=fp8", "wants fp16 or bf16 or fp32 or int8"),
        ("flavor=trt", "wants auto or tensorrt or rtx"),
        ("capabilities=sm80", "capabilities is for flavor=rtx, not auto"),
        ("flavor=rtx capabilities=sm80,sm80", "capabilities names one twice"),
        ("flavor=rtx capabilities=sm90", "wants list of sm75 or sm80 or sm86 or sm89"),
    ):
        with pytest.raises(SpecError, match=said):
            parse_target(f"tensorrt{{{wrong}}}")


def test_nothing_to_build_for(tmp_path: Path) -> None:
    model = random_model(heads=(4,))
    with pytest.raises(UsageError, match="no workload to build an engine for"):
        TensorRt().emit(model, replace(make_context(model), workload=()), tmp_path)


def layer(kind: str, *types: str, size: int = 64) -> dict[str, Any]:
    values = [{"Name": "x", "Dimensions": [-1, size], "Format/Datatype": x} for x in types]
    return {"Name": "l", "LayerType": kind, "Inputs": values[:-1], "Outputs": values[-1:]}


def test_types_are_read_from_what_the_inspector_tells() -> None:
    factor = {"Name": "alpha", "Dimensions": [1], "Format/Datatype": "Float"}
    product = layer("gemm", "Half", "Half", "Half")
    product["Inputs"] += [factor, factor]
    told = {
        "Layers": [
            product,
            layer("kgen", "Int64", "Row major linear FP16 format", "BFloat16"),
            layer("x", "Thirty-two wide channel vectorized row major Int8 format.", "Float"),
            layer("x", "Bool", "Int32", "Row major linear FP32", "N/A due to dynamic shapes"),
            {"Name": "y", "Inputs": [{"Datatype": "Half", "Dimensions": [2]}]},
            "only a name",
        ],
        "Bindings": ["input_ids"],
    }
    types = {"bf16": 1, "bool": 1, "fp16": 5, "fp32": 2, "int32": 1, "int64": 1, "int8": 1}
    assert seen_in(told) == TypeReport(types, closed=1)
    assert seen_in({"Layers": ["a", "b"]}) == TypeReport({}, closed=2)
    fused = [layer("Myelin", "Int64", "Float"), layer("gemm", "Half", "Half")]
    assert seen_in({"Layers": fused}) == TypeReport(
        {"fp16": 2, "fp32": 1, "int64": 1}, closed=1
    )


@pytest.mark.parametrize(
    ("types", "asked", "quantised", "right"),
    [
        ({"fp16": 90, "fp32": 10, "int64": 3}, "fp16", False, True),
        ({"fp32": 100}, "fp16", False, False),
        ({"fp16": 1, "fp32": 99}, "fp16", False, False),
        ({"fp16": 90, "fp32": 1}, "bf16", False, False),
        ({"bf16": 9, "fp32": 5}, "bf16", False, True),
        ({"fp32": 9}, "fp32", False, True),
        ({"fp32": 9, "fp16": 1}, "fp32", False, False),
        ({"fp16": 9, "int8": 4}, "fp16", True, True),
        ({"fp16": 9}, "fp16", True, False),
        ({"fp16": 9, "int8": 4}, "fp16", False, False),
        ({}, "fp16", False, False),
    ],
)
def test_an_engine_of_other_types_is_refused(
    types: dict[str, int], asked: Any, quantised: bool, right: bool
) -> None:
    if right:
        assert check_types(TypeReport(types), asked, quantised) == TypeReport(types)
        assert check_types(TypeReport(types, closed=1), asked, quantised).unseen == ""
        return
    with pytest.raises(GateError, match="was asked for; the engine's layers hold"):
        check_types(TypeReport(types), asked, quantised)


@pytest.mark.parametrize(
    ("types", "asked", "quantised", "wrong"),
    [
        ({"fp32": 1}, "fp16", False, False),
        ({}, "bf16", False, False),
        ({"fp16": 9}, "fp16", True, False),
        ({"fp32": 1, "int8": 4}, "fp16", False, True),
        ({"fp32": 9, "fp16": 1}, "fp32", False, True),
    ],
)
def test_what_cannot_be_seen_is_no_fault(
    types: dict[str, int], asked: Any, quantised: bool, wrong: bool
) -> None:
    seen = TypeReport(types, closed=2)
    if wrong:
        with pytest.raises(GateError, match="was asked for; the engine's layers hold"):
            check_types(seen, asked, quantised)
        return
    assert "2 layers do not tell what they hold" in check_types(seen, asked, quantised).unseen


def test_what_is_known_of_a_plan(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    assert read_facts(plan) == {}
    beside = tmp_path / "model.plan.json"
    beside.write_text(json.dumps({"slots": 2}))
    assert read_facts(plan) == {"slots": 2}
    for bad in ("{", "[]", '{"slots": "two"}'):
        beside.write_text(bad)
        with pytest.raises(ModelError, match="build the plan again"):
            read_facts(plan)


class Fixed:
    """An engine that gives the torch module's logits, off by so much."""

    def __init__(self, model: Any, off: float) -> None:
        from prumux.optimizer.model.module import EncoderModule, run

        self.run = lambda x: run(EncoderModule(model), x) + np.float32(off)


@pytest.mark.parametrize(("off", "right"), [(0.001, True), (0.5, False), (np.nan, False)])
def test_the_gate_of_the_numbers(
    off: float, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(heads=(4,))
    ctx = make_context(model)
    monkeypatch.setattr(TensorRt, "engine", lambda *rest: Fixed(model, off))
    if right:
        notes = TensorRt()._checked(model, ctx, tmp_path)
        assert notes["parity"]["fp16"] == pytest.approx(off, rel=0.01)
        assert (notes["agreement"], notes["rows"]) == ({"fp16": 1.0}, 5)
        return
    with pytest.raises(GateError, match="logits differ by up to") as caught:
        TensorRt()._checked(model, ctx, tmp_path)
    assert "tensorrt{precision=fp32}" in str(caught.value)
    assert "tensorrt{tolerance=0.04}" in str(caught.value)


def test_drafts_are_not_checked(tmp_path: Path) -> None:
    model = random_model(heads=(4,))
    draft = TensorRt("bf16", opt_level=1).draft()
    assert isinstance(draft, TensorRt)
    assert (draft.precision, draft.opt_level) == ("bf16", 1)
    assert draft._checked(model, make_context(model), tmp_path) == {}


def test_a_broken_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        assert name == "tensorrt"
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(MissingError, match=r"does not load: libnvinfer\.so\.11"):
        trt_library.CLASSIC.library()


def test_auto_takes_the_classic_flavour_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    classic, rtx = trt_library.FLAVORS
    there = SimpleNamespace(__version__="11.4.1.2")
    for installed in (False, True):
        monkeypatch.setitem(sys.modules, rtx.module, there)
        monkeypatch.setitem(sys.modules, classic.module, there if installed else None)
        assert trt_library.flavor_named("auto") is (classic if installed else rtx)
        assert TensorRt(flavor="rtx").library is rtx
        assert TensorRt(flavor="tensorrt").library is classic
    monkeypatch.setitem(sys.modules, classic.module, None)
    monkeypatch.setitem(sys.modules, rtx.module, None)
    assert trt_library.flavor_named("auto") is classic
    assert trt_library.flavor_of(Path("a/model.rtx.plan")) is rtx
    assert trt_library.flavor_of(Path("a/model.plan")) is classic


def test_a_new_version_of_rtx_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, trt_library.RTX.module, SimpleNamespace(__version__="1.2.0")
    )
    with pytest.raises(MissingError, match=r"TensorRT for RTX 1\.2\.0 is here, 1\.7 or newer"):
        TensorRt(flavor="rtx").check()
