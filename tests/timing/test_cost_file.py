"""A costs file is read as it was written, and refused with file and key if it is wrong."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prumux.optimizer.base.errors import PassError, UsageError
from prumux.optimizer.model.sizes import Encoder, Layer, Multiplexing
from prumux.optimizer.pipeline.costs import Costs
from prumux.optimizer.timing.cost_file import read_costs
from tests.helpers import checkpoints
from tests.helpers.cascades import cascade_of
from tests.helpers.costs import costs_file, linear
from tests.helpers.factory import random_model

FP32 = "onnx{precision=fp32}"
SINGLE = ("targets", FP32, "single")
CONFIG = checkpoints.config(
    vocab_size=101,
    max_position_embeddings=40,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
)
CLOCK = linear(1.0, 0.01)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    targets = {FP32: CLOCK, "onnx{precision=int8}": linear(0.5, 0.005)}
    return costs_file(tmp_path / "costs.json", tmp_path / "model", targets)


def estimate(costs: Costs, encoder: Encoder) -> float:
    return costs.estimate(encoder, costs.encoder, FP32, FP32).ms


def cut(encoder: Encoder, *sizes: tuple[int, int], **fields: Any) -> Encoder:
    return replace(encoder, layers=tuple(Layer(*x) for x in sizes), **fields)


def test_a_file_gives_the_times_that_were_measured(file: Path) -> None:
    costs = read_costs(file)
    dense = costs.encoder
    assert costs.batch == 8
    assert costs.length == 16
    assert costs.name == "Serving GPU, Serving CPU"
    assert estimate(costs, dense) == pytest.approx(CLOCK(dense))
    for sizes in ([(4, 64)] * 3, [(1, 20), (0, 64), (3, 0)], [(0, 0), (0, 0), (2, 5)]):
        for early in (False, True):
            encoder = cut(dense, *sizes, pool_early=early)
            assert estimate(costs, encoder) == pytest.approx(CLOCK(encoder))
    found = costs.estimate(dense, dense, "onnx{precision=int8}", FP32)
    assert found.speedup == pytest.approx(CLOCK(dense) / linear(0.5, 0.005)(dense))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_layers_before_the_mixing_cost_as_with_single_rows(file: Path, at: int) -> None:
    costs = read_costs(file)
    encoder = cut(costs.encoder, (4, 30), (2, 64), (1, 8), mux=Multiplexing(2, at))
    assert estimate(costs, encoder) == pytest.approx(CLOCK(encoder))


def test_a_cascade_costs_the_share_of_its_second_stage(file: Path) -> None:
    costs = read_costs(file)
    first = random_model(heads=(1, 2, 4), ffn=(5, 0, 64), hidden=24, head_dim=6)
    second = random_model(heads=(4, 4, 4), hidden=24, head_dim=6)
    ms = [estimate(costs, x.encoder) for x in (first, second)]
    for share, most, counted in ((0.0, 1.0, 0.0), (0.3, 1.0, 0.3), (0.3, 0.25, 0.25)):
        model = cascade_of(0.4, first=first, second=second, share=share, max_share=most)
        found = costs.estimate_model(model, costs.encoder, FP32, FP32)
        assert found.ms == pytest.approx(ms[0] + counted * ms[1])
    found = costs.estimate_model(first, costs.encoder, FP32, FP32)
    assert found == costs.estimate(first.encoder, costs.encoder, FP32, FP32)
    other = cascade_of(0.4, first=first, second=random_model(heads=(4, 4, 4), head_dim=12))
    with pytest.raises(PassError, match="with embedding 24, this candidate has 48"):
        costs.estimate_model(other, costs.encoder, FP32, FP32)


def test_what_was_not_measured_has_no_estimate(file: Path) -> None:
    costs = read_costs(file)
    dense = costs.encoder
    for mux in (Multiplexing(3), Multiplexing(2, variant="fixed"), Multiplexing(2, demux=2)):
        with pytest.raises(PassError, match=r"hold no times of mux.n=. .*\n.*--mix \d"):
            estimate(costs, replace(dense, mux=mux))
    with pytest.raises(PassError, match="with hidden 24, this candidate has 12"):
        estimate(costs, replace(dense, hidden=12))
    with pytest.raises(PassError, match="with layers"):
        estimate(costs, replace(dense, layers=dense.layers[:2]))
    with pytest.raises(
        UsageError, match=r"targets has no tensorrt, it has onnx.*\n.*--target"
    ):
        costs.on("tensorrt")


def test_another_model_is_refused_by_the_size_that_differs(file: Path) -> None:
    costs = read_costs(file)
    costs.check_model(replace(costs.encoder, vocab=500, labels=7, positions=999))
    others: dict[str, Any] = {"hidden": 48, "activation": "relu", "head_dim": 12}
    for field, value in others.items():
        other = replace(costs.encoder, **{field: value})
        with pytest.raises(UsageError, match=rf"costs.json': model.{field} is .* {value}\n"):
            costs.check_model(other)
    with pytest.raises(UsageError, match=r"model.layers is .*ffn=64,64,64"):
        costs.check_model(cut(costs.encoder, (4, 64), (4, 64), (4, 32)))


def put(values: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The values with another one in a place; `...` takes the place out."""
    changed = copy.deepcopy(values)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("kind",), "prumux-report", "kind is \"prumux-report\", it must be 'prumux-costs'"),
        (("schema_version",), 2, "schema_version is 2, this prumux reads 1"),
        (("schema_version",), True, "schema_version is true"),
        (("serving",), ..., "serving is missing"),
        (("serving", "batch"), 0, "serving.batch is 0, it must be a whole number from 1"),
        (("serving", "length"), 99, "serving.length is 99, the model takes at most 40"),
        (("serving", "length"), "16", 'serving.length is "16"'),
        (("machine",), ["cpu"], 'machine is ["cpu"], it must be an object'),
        (("machine", "cpu"), 7, "machine.cpu is 7, it must be a text"),
        (("model", "hidden"), ..., "model.hidden is missing"),
        (("model", "hiden"), 24, "model.hiden is unknown"),
        (("model", "hidden"), -24, "model.hidden is -24"),
        (("model", "family"), "gpt", 'model.family is "gpt"'),
        (("model", "layers"), [], "model.layers is []"),
        (("model", "layers", 1, "ffn"), 63, "model.layers differ in size"),
        (("model", "layers", 1, "ffn"), 1.5, "model.layers[1].ffn is 1.5"),
        (("model", "mux"), {"n": 2}, "model.mux is no null"),
        (("model", "constants"), [1], "model.constants is [1]"),
        (("targets",), {}, "targets is empty"),
        (
            (*SINGLE, "dense_ms"),
            math.nan,
            "single.dense_ms is NaN, it must be a number from 0",
        ),
        ((*SINGLE, "dense_ms"), 0, "single.dense_ms is 0, it must be above 0"),
        ((*SINGLE, "base_ms"), -0.1, "single.base_ms is -0.1"),
        ((*SINGLE, "base_ms"), math.inf, "single.base_ms is Infinity"),
        ((*SINGLE, "base_ms"), 10**400, "single.base_ms is 1000"),
        ((*SINGLE, "base_ms"), None, "single.base_ms is null"),
        ((*SINGLE, "error"), 0.3, "single.error is 0.3, at most 0.1 is used"),
        ((*SINGLE, "wide"), ..., "single.wide is missing"),
        ((*SINGLE, "wide", "ffn", "ms", 1), "1", 'wide.ffn.ms[1] is "1"'),
        ((*SINGLE, "wide", "ffn", "ms", 1), 1e8, "wide.ffn.ms is [0.0, 100000000.0"),
        ((*SINGLE, "wide", "ffn", "ms"), [0.0], "wide.ffn has 8 sizes and 1 ms"),
        ((*SINGLE, "wide", "ffn", "sizes", 7), 63, "wide.ffn.sizes ends at 63"),
        ((*SINGLE, "wide", "attention", "sizes"), [0, 2, 1, 4, 4], "sizes rise from 0"),
        ((*SINGLE, "narrow", "attention", "sizes", 1), 0, "sizes rise from 0"),
        (("targets", FP32, "mixed", "1"), {}, "mixed.1 is no number of rows from 2"),
        (("targets", FP32, "engine"), ..., "engine is missing"),
    ],
)
def test_a_wrong_value_is_named(
    file: Path, path: tuple[Any, ...], value: Any, said: str
) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(put(values, path, value)), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_costs(file)
    first, cure = str(caught.value).split("\n")
    assert first.startswith(f"'{file}': ")
    assert said in first
    assert cure.endswith("prumux-bench --measure-costs costs.json MODEL")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda x: x[: len(x) // 2], "is not JSON, or cut short"),
        (lambda x: b"", "is not JSON, or cut short"),
        (lambda x: b"\xff\xfe" + x, "is not JSON"),
        (lambda x: b"[" * 100_000, "is not JSON"),
        (lambda x: b"[]", "is [], it must be an object"),
        (lambda x: x + b" " * (17 << 20), "has over 16 MiB"),
    ],
)
def test_a_damaged_file_is_refused(
    file: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UsageError) as caught:
        read_costs(file)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match="cannot be read"):
            read_costs(path)
