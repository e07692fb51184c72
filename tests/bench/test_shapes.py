"""`bench/shapes.py` on a tiny shape: every engine that is here, every cell asked for."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from prumux.export.runtime.torch_engine import FastModule
from prumux.optimizer.model.module import EncoderModule
from tests.helpers.factory import multiplexed, random_batch, random_model
from tests.helpers.scripts import script


@pytest.fixture(name="script")
def _script() -> ModuleType:
    return script("shapes")


def run(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
) -> tuple[dict[str, Any], str]:
    line = ["shapes.py", "--shape", "tiny", "--quick", "--length", "16", *arguments]
    monkeypatch.setattr(sys, "argv", line)
    script.main()
    said = capsys.readouterr()
    return json.loads(said.out), said.err


@pytest.mark.parametrize("engine", ["ort-cpu", "torch"])
def test_every_cell(
    script: ModuleType,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--engine", engine, "--sparsity", "0", "0.6", "--n", "1", "2", "--at", "0", "1"]
    found, said = run(script, monkeypatch, capsys, *asked)
    cells = [(x["sparsity"], x["n"], x["at"]) for x in found["entries"]]
    assert cells == [(s, n, at) for s in (0, 0.6) for n, at in ((1, 0), (2, 0), (2, 1))]
    for x in found["entries"]:
        assert x["low"] <= x["throughput_ratio"] <= x["high"]
        assert x["batch"] % x["n"] == 0
        assert x["ceiling_share"] > 0
        assert 0 < sum(x["time_shares"].values()) <= 1 + 1e-9
        full = [{"heads": 4, "ffn": 64}] * 2
        assert (x["layers"] == full) == (x["sparsity"] == 0)
        assert (x["mux_parameters"] > 0) == (x["n"] > 1)
    assert found["not_possible"] == {}
    assert found["timing"] == "wall clock"
    assert found["ceiling"]["flops"] > 0
    assert {"device", "versions", "commit", "command"} <= set(found)
    *_, last = said.strip().splitlines()
    assert last.startswith(" 60 %  n= 2 at=1 batch    2")
    if engine == "ort-cpu":
        mixed = next(x for x in found["entries"] if x["n"] == 2)
        assert mixed["time_shares"]["demux"] > 0


def test_half_precision_in_torch(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--engine", "torch", "--precision", "bf16", "--sparsity", "0.6", "0.98"]
    found, _ = run(script, monkeypatch, capsys, *asked, "--n", "2", "--pool-early")
    assert found["precision"] == "bf16"
    assert "is below the cost" in found["not_possible"]["0.98"]
    assert len(found["entries"]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fused_attention_gives_the_modules_numbers(dtype: torch.dtype) -> None:
    given = random_model(heads=(3, 2, 3), ffn=(5, 6, 7), hidden=12, pool_early=True)
    model = multiplexed(given, n=2, at=1)
    batch = random_batch(model, rows=6).inputs()
    inputs = {k: torch.as_tensor(x) for k, x in batch.items()}
    expected = EncoderModule(model)(**inputs)
    found = FastModule(model).to(dtype)(**inputs).float()
    limit = 1e-5 if dtype == torch.float32 else 0.05
    assert float((found - expected).abs().max()) < limit * float(expected.abs().max())


def test_what_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for asked, message in (
        (["--at", "2"], "--at the 2 layers from 0"),
        (["--sparsity", "1.5"], "sparsity must be in"),
        (["--target", "onnyx"], "onnyx"),
        (["--device", "cuda", "--engine", "torch"], "no CUDA device is visible"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(script, monkeypatch, capsys, *asked)
        assert message in f"{ended.value} {capsys.readouterr().err}"
